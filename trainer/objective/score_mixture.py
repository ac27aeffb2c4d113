"""The likelihood of each share of sensitive images, from where the unlabeled images fall between the examples' scores.

Cut at quantiles of the examples' scores, every cell holds the same share of what is sensitive. Unlabeled images are a
mixture: the sensitive ones fall evenly into the cells, the normal ones mostly into the lowest. How the normal ones fall
is not known where the kinds overlap, so many possibilities count: on the scale on which the examples are normally
distributed, they are normally distributed too (the binormal model of ROC curves), nearer or farther, narrower or wider,
or some of them (look-alikes) lie nearer than the rest. Only the order of the scores is used, not their values.
"""

import numpy as np

SHARES = np.concatenate([np.linspace(0.0025, 0.1, 20), np.linspace(0.11, 0.95, 43)])
STEPS = np.gradient(SHARES)
CELLS = 12
WEIGHT_OF_ALL = 400  # so many unlabeled images at most: more of them do not make the possibilities any truer

DISTANCES = np.geomspace(0.5, 7, 14)  # of normal from sensitive images, in standard deviations of the latter
WIDTHS = (0.5, 0.7, 1.0, 1.4)  # standard deviation of the normal ones
LOOK_ALIKES = ((0.0, 1.0), (0.15, 0.4), (0.35, 0.5))  # share of them, and their distance in that of the rest


def likelihood(
    unlabeled: np.ndarray, sensitive: np.ndarray, rng: np.random.Generator, *, draws: int = 16
) -> np.ndarray:
    """Return the likelihood of each of SHARES, summing to 1.

    Args: scores, [n_u] and [n_s], of images the classifier was not trained on. draws: of the cells' true masses,
        which few examples leave uncertain. The unlabeled images do not correct them: they may hold other kinds.
    """
    counts, between = _cells(unlabeled, sensitive, rng)
    masses = rng.dirichlet(between, draws)  # what order statistics leave open: exact for any distribution
    normal = _normal_masses(masses)
    shares = SHARES[:, None, None, None]
    fit = np.log(shares * masses[:, None] + (1 - shares) * normal + 1e-12) @ counts  # [shares, draws, possibilities]
    of_draw = np.exp(fit - fit.max((0, 2), keepdims=True)).mean(2)
    return (of_draw * STEPS[:, None] / (of_draw * STEPS[:, None]).sum(0)).mean(1)


def mean(weights: np.ndarray) -> float:
    """Return the mean share. Args: weights: [SHARES], such as a likelihood times a belief."""
    return float((weights * SHARES).sum() / weights.sum())


def quantile(weights: np.ndarray, p: float) -> float:
    """Return the share below which a part p of the weights lies. Args: as mean."""
    below = (np.cumsum(weights) - weights / 2) / weights.sum()
    return float(np.interp(p, below, SHARES))


def _cells(unlabeled: np.ndarray, sensitive: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return how many unlabeled images fall into each cell, and how many gaps between examples a cell spans."""
    scores = np.concatenate([unlabeled, sensitive])
    ranks = np.empty(len(scores))
    ranks[np.lexsort((rng.random(len(scores)), scores))] = np.arange(len(scores))  # equal scores: by lot
    n = len(sensitive)
    cut = np.unique(np.linspace(0, n + 1, min(CELLS, n + 1) + 1).round().astype(int))[1:-1]
    edges = np.sort(ranks[len(unlabeled) :])[cut - 1]
    counts = np.bincount(np.searchsorted(edges, ranks[: len(unlabeled)]), minlength=len(cut) + 1)
    return counts * min(1.0, WEIGHT_OF_ALL / len(unlabeled)), np.diff([0, *cut, n + 1])


def _normal_masses(masses: np.ndarray) -> np.ndarray:
    """Return how normal images may fall into the cells: [draws, possibilities, cells]."""
    from scipy.special import ndtri  # scipy takes a while to import

    edges = ndtri(np.cumsum(masses, 1)[:, :-1].clip(1e-9, 1 - 1e-9))
    found = []
    for share, nearer in LOOK_ALIKES:
        rest = np.concatenate([_normal_in(edges, DISTANCES, width) for width in WIDTHS], axis=1)
        alike = np.tile(_normal_in(edges, DISTANCES * nearer, 1.0), (1, len(WIDTHS), 1))
        found.append((1 - share) * rest + share * alike)
    return np.concatenate(found, axis=1)


def _normal_in(edges: np.ndarray, distances: np.ndarray, width: float) -> np.ndarray:
    """Return the masses of normal distributions between edges [draws, n - 1]: [draws, distances, n]."""
    from scipy.special import ndtr

    below = ndtr((edges[:, None] + distances[:, None]) / width)
    ends = np.zeros((*below.shape[:2], 1))
    return np.diff(np.concatenate([ends, below, ends + 1], axis=2), axis=2)
