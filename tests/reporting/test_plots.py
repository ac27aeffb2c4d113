"""Curves: what the running mean makes of values that are missing."""

import math

import pytest

from trainer.reporting.plots import running_mean


def test_the_running_mean_of_a_constant_is_the_constant():
    assert running_mean([3.0] * 5) == pytest.approx([3.0] * 5)


def test_the_running_mean_by_hand():
    """Weights 1 - keep and keep * (1 - keep), divided by their sum."""
    assert running_mean([1.0, 4.0], keep=0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 4) / 0.75])


def test_a_step_without_a_value_leaves_the_curve_whole():
    nan = math.nan
    found = running_mean([nan, 2.0, nan, 2.0, 6.0], keep=0.5)
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([2.0, 2.0, 2.0, running_mean([2.0, 2.0, 6.0], keep=0.5)[-1]])
