"""Class-prior estimation: the share of sensitive images among the unlabeled ones, from image features.

A classifier is trained to tell sensitive (labeled) from unlabeled images. Sensitive images hidden among the unlabeled
look like labeled ones, so they score high; and the share of the unlabeled that score as high as the labeled ones is the
prior. Only what resembles the labeled images is counted, and with it normal images that the features cannot tell apart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import score_mixture
from .score_mixture import SHARES

FOLDS = 5
APART = (0.8, 0.9)  # AUC from which best-bin estimation counts, and from which it counts for half
TOO_WIDE = 0.4  # an interval so wide tells little that a guess does not
CONFIDENCE = 0.1  # delta of best-bin estimation
TOO_ALIKE = 0.8  # AUC below which the features hardly tell the kinds apart


@dataclass(frozen=True)
class Prior:
    """Estimate of the share of sensitive images among the unlabeled ones."""

    value: float
    low: float  # interval, 95 %
    high: float
    elkan_noto: float  # a cross-check that tends to be too high
    auc: float  # how well the scores tell sensitive from normal images: 0.5 by chance, 1 without a mistake
    n_unlabeled: int
    n_sensitive: int

    @property
    def is_telling(self) -> bool:
        return self.high - self.low <= TOO_WIDE and self.auc >= TOO_ALIKE


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
    Source: Garg et al. 2021 (arXiv 2111.00980), with their constants.
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


def estimate(scores: np.ndarray, is_sensitive: np.ndarray, *, seed: int) -> Prior:
    """Estimate the prior from cross-fitted scores, with an interval.

    The mean share of the mixture leans low where the kinds are apart, and best-bin estimation is far too high where
    they overlap: so they are averaged, unless they overlap. A weak belief that small shares are likelier decides where
    the images do not: a prior too high unlearns what only resembles the sensitive images, one too low leaves a little
    of them. The interval is no belief's: at its low end all magnitudes are equally likely, at its high end all shares.
    """
    unlabeled, sensitive = scores[~is_sensitive], scores[is_sensitive]
    likelihood = score_mixture.likelihood(unlabeled, sensitive, np.random.default_rng(seed))
    low, high = score_mixture.quantile(likelihood / SHARES, 0.025), score_mixture.quantile(likelihood, 0.975)
    mixture = score_mixture.mean(likelihood * (1 - SHARES))
    auc = separation(unlabeled, sensitive, mixture)
    weight = float(np.interp(auc, APART, (0, 0.5)))
    value = (1 - weight) * mixture + weight * min(best_bin(unlabeled, sensitive), high)
    return Prior(
        value=value,
        low=min(low, value),
        high=max(high, value),
        elkan_noto=elkan_noto(unlabeled, sensitive),
        auc=auc,
        n_unlabeled=len(unlabeled),
        n_sensitive=len(sensitive),
    )


def separation(unlabeled: np.ndarray, sensitive: np.ndarray, share: float) -> float:
    """Return the area under the ROC curve between sensitive and normal images.

    Args: scores, as best_bin. share: of sensitive ones among the unlabeled, which score like the labeled.
    """
    ordered = np.sort(unlabeled)
    below = [np.searchsorted(ordered, sensitive, side).mean() / len(ordered) for side in ("left", "right")]
    return float(min(1.0, max(0.0, (sum(below) / 2 - share / 2) / (1 - share))))


def _deviation(n: int) -> float:
    """Bound the error of an empirical share of n, at any threshold at once (Dvoretzky, Kiefer, Wolfowitz; Massart)."""
    return math.sqrt(math.log(4 / CONFIDENCE) / (2 * n))
