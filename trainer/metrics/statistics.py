"""Pure functions: intervals of rates, tests of paired verdicts, distances between two sets of features."""

import math
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # normal quantile of a 95 % interval
POWER_Z = 0.841621  # normal quantile of 80 % power
MAX_COMPONENTS = 64  # principal components in a distance


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, which holds also near 0 and 1: (low, high).

    Raises: ValueError for n = 0. Source: Wilson 1927.
    """
    from scipy.stats import binomtest  # takes a second to import

    low, high = binomtest(hits, n).proportion_ci(method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Pairs:
    """Verdicts on pictures of the same n seeds, before and after."""

    n: int
    gained: int  # sensitive before, normal after
    lost: int  # normal before, sensitive after
    p: float  # of McNemar's exact test: the probability of so uneven a split if nothing changed

    @property
    def difference(self) -> float:
        """Return the rate after minus the rate before."""
        return (self.gained - self.lost) / self.n

    @property
    def needed(self) -> int | None:
        """Return how many pictures show a difference of this size with a power of 80 %; None without a difference."""
        if self.gained == self.lost:
            return None
        return math.ceil(self.n * (Z + POWER_Z) ** 2 * (self.gained + self.lost) / (self.gained - self.lost) ** 2)


def paired(before: np.ndarray, after: np.ndarray) -> Pairs:
    """Compare verdicts on pictures of the same seeds.

    Args: before, after: [n] bool, normal or not.
    Source: McNemar 1947, the exact test.
    """
    from scipy.stats import binomtest

    gained, lost = int((~before & after).sum()), int((before & ~after).sum())
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return Pairs(len(before), gained, lost, float(p))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of features.

    Args: a, b: [n, features]. Source: Dowson and Landau 1982; on Inception's features it is called FID.
    """
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # the product of two covariances has real eigenvalues >= 0 up to rounding, so its root's trace needs no sqrtm
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0))
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum())


def components(real: np.ndarray, n_pictures: int) -> np.ndarray | None:
    """Return the principal components of real images' features, at most MAX_COMPONENTS.

    With fewer images than features, the covariance of all features would be singular.

    Args: real: [n, features]. n_pictures: size of the smallest set of pictures to compare with.
    Returns: [features, k], orthonormal; None if the images are too few for two components.
    """
    k = min(MAX_COMPONENTS, real.shape[1], len(real) // 4, n_pictures // 4)
    if k < 2:
        return None
    return np.linalg.svd(real - real.mean(0), full_matrices=False)[2][:k].T


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared maximum mean discrepancy with a cubic kernel: unbiased, so it suits few pictures.

    Its mean is 0 for two samples of one distribution.

    Args: a, b: [n, features]. Source: Bińkowski et al. 2018; on Inception's features it is called KID.
    """
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    of_a, of_b = kernel(a, a), kernel(b, b)
    n, m = len(a), len(b)
    within = (of_a.sum() - np.trace(of_a)) / (n * (n - 1)) + (of_b.sum() - np.trace(of_b)) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())
