"""Rates and distances against published values and closed forms."""

import numpy as np
import pytest

from trainer.report import memorising
from trainer.stats import frechet_distance, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilson(hits, n, low, high):
    """The last two: Newcombe 1998, table I (method 3)."""
    assert wilson(hits, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_wilson_of_nothing():
    with pytest.raises(ValueError, match="no trials"):
        wilson(0, 0)


def test_frechet_distance_of_diagonal_gaussians():
    """For independent features it is the sum over (mean difference)^2 + (std difference)^2."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200_000, 3)) * [1.0, 2.0, 0.5] + [0.0, 1.0, 0.0]
    b = rng.standard_normal((200_000, 3)) * [2.0, 2.0, 1.0] + [1.0, 1.0, 0.0]
    assert frechet_distance(a, b) == pytest.approx(1.0 + 1.0 + 0.25, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("trained", "held_out", "warns"), [(1.05, 1.0, False), (1.5, 1.4, False), (1.5, 1.1, True), (3.0, 2.3, False)]
)
def test_memorising_is_noticed_when_the_held_out_images_fall_behind(trained, held_out, warns):
    assert memorising({"trained": trained, "held_out": held_out}) == warns
    assert not memorising({})
