"""Class-prior estimation: the share of sensitive images among the unlabeled ones, from image features.

A classifier is trained to tell sensitive (labeled) from unlabeled images. Sensitive images hidden among the unlabeled
look like labeled ones, so they score high; and the share of the unlabeled that score as high as the labeled ones is the
prior.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

FOLDS = 5
CONFIDENCE = 0.1  # delta of the bounds below
TOO_WIDE = 0.25  # an estimate that may be off by more tells nothing that a guess does not


@dataclass(frozen=True)
class Prior:
    """Estimate of the share of sensitive images among the unlabeled ones."""

    value: float
    low: float  # bootstrap interval, 95 %
    high: float
    elkan_noto: float  # a cross-check that tends to be too high
    bound: float  # half-width that holds for any data of this many images
    n_unlabeled: int
    n_sensitive: int

    @property
    def is_telling(self) -> bool:
        return self.bound <= TOO_WIDE


def cross_fit(features: np.ndarray, is_sensitive: np.ndarray, *, seed: int) -> np.ndarray:
    """Estimate p(labeled sensitive | image), each by a logistic regression that was not trained on that image.

    Args:
        features: [n, d]. is_sensitive: [n] bool: labeled so; the others are unlabeled.
    Returns: [n].
    Raises: ValueError with fewer than two images of a kind.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    smaller = min(is_sensitive.sum(), (~is_sensitive).sum())
    if smaller < 2:
        raise ValueError("needs at least 2 images of each kind")
    folds = StratifiedKFold(min(FOLDS, smaller), shuffle=True, random_state=seed)
    return cross_val_predict(_classifier(features.shape[1]), features, is_sensitive, cv=folds, method="predict_proba")[
        :, 1
    ]


def fit(features: np.ndarray, is_sensitive: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Train the same classifier on all images. Returns: features [n, d] of new images -> p(sensitive) [n]."""
    classifier = _classifier(features.shape[1]).fit(features, is_sensitive)
    return lambda new: classifier.predict_proba(new)[:, 1]


def _classifier(n_features: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # as many features as images, or more: a penalty that grows with their number keeps the scores of new images sane
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / n_features, max_iter=2000))


def best_bin(unlabeled: np.ndarray, sensitive: np.ndarray) -> float:
    """Estimate the prior by best-bin estimation: share of unlabeled over share of sensitive above the best threshold.

    Args: scores, [n_u] and [n_s], of images the classifier was not trained on.
    Source: Garg et al. 2021 (arXiv 2111.00980), with their constant.
    """
    gamma = 0.01
    thresholds = np.unique(sensitive)  # others leave the share of sensitive ones as it is
    of_s = 1 - np.searchsorted(np.sort(sensitive), thresholds) / len(sensitive)
    of_u = 1 - np.searchsorted(np.sort(unlabeled), thresholds) / len(unlabeled)
    slack = _deviation(len(unlabeled)) + (1 + gamma) * _deviation(len(sensitive))
    best = np.argmin((of_u + slack) / of_s)
    return float(min(1.0, of_u[best] / of_s[best]))


def elkan_noto(unlabeled: np.ndarray, sensitive: np.ndarray) -> float:
    """Estimate the prior from calibrated probabilities.

    Args: as best_bin. Source: Elkan and Noto 2008, their estimator e1.
    """
    labeled = sensitive.mean()  # p(labeled | sensitive)
    odds = unlabeled / (1 - unlabeled)
    return float(min(1.0, ((1 - labeled) / labeled * odds).mean()))


def estimate(scores: np.ndarray, is_sensitive: np.ndarray, *, seed: int, draws: int = 500) -> Prior:
    """Estimate the prior from cross-fitted scores, with a bootstrap interval over the images."""
    unlabeled, sensitive = scores[~is_sensitive], scores[is_sensitive]
    rng = np.random.default_rng(seed)
    again = [
        best_bin(rng.choice(unlabeled, len(unlabeled)), rng.choice(sensitive, len(sensitive))) for _ in range(draws)
    ]
    low, high = np.quantile(again, [0.025, 0.975])
    value = best_bin(unlabeled, sensitive)
    return Prior(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        elkan_noto=elkan_noto(unlabeled, sensitive),
        bound=bound(len(unlabeled), len(sensitive)),
        n_unlabeled=len(unlabeled),
        n_sensitive=len(sensitive),
    )


def bound(n_unlabeled: int, n_sensitive: int) -> float:
    """Bound the error of an estimate from so many images, for any distribution of scores."""
    return _deviation(n_unlabeled) + _deviation(n_sensitive)


def _deviation(n: int) -> float:
    """Bound the error of an empirical share of n, at any threshold at once (Dvoretzky, Kiefer, Wolfowitz; Massart)."""
    return math.sqrt(math.log(4 / CONFIDENCE) / (2 * n))
