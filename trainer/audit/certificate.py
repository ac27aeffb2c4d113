"""A bound on how many hidden sensitive images are left among those that are kept, by conformal p-values."""

import numpy as np

from ..common.errors import UserError


def p_values(scores: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Return for each image the share of sensitive images that are expected to score as low or lower.

    Where a hidden sensitive image is like one more example, its p-value is at most a with probability a or less. So of
    the hidden sensitive images, a share of a at most is expected among the images whose p-value is at most a.

    Args:
        scores, examples: [n] of unlabeled and [m] of sensitive images, each by a classifier that did not see the image.
    Returns: [n], each at least 1 / (m + 1).
    Source: Vovk et al. 2005; with scores from several folds, cross-conformal (Vovk 2015), which holds nearly.
    """
    not_above = np.searchsorted(np.sort(examples), scores, side="right")
    return (1 + not_above) / (len(examples) + 1)


def count_to_leave_out(scores: np.ndarray, examples: np.ndarray, at_most: float) -> int:
    """Return how many images, the highest scores first, have to go so that what is kept holds its promise.

    Args: at_most: share of the hidden sensitive images that may be left among the images kept.
    Raises: UserError where the examples are too few for such a share.
    """
    least = 1 / (len(examples) + 1)
    if at_most < least:
        raise UserError(
            f"--keep-at-most {at_most:g}: {len(examples)} sensitive examples cannot promise less than {least:.3f}. "
            f"More examples can: {int(np.ceil(1 / at_most)) - 1} for this share"
        )
    return int((p_values(scores, examples) > at_most).sum())
