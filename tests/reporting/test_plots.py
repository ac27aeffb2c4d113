"""Curves: what the running mean makes of values that are missing, and that a plot shows what it is given."""

import math

import numpy as np
import pytest
from PIL import Image

from trainer.reporting.plots import draw_loss_curves, running_mean


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


def test_the_plot_of_a_run_shows_its_steps(tmp_path):
    """The same steps are the same picture, other ones another; a step without a number leaves the plot whole."""
    fields = ("risk_unlabeled", "risk_sensitive", "normal_risk", "ratio")
    flat = [{"step": i, **dict.fromkeys(fields, 1.0)} for i in range(9)]
    rising = [{**step, "ratio": 1.0 + step["step"]} for step in flat]
    missing = [*rising, {"step": 9, **dict.fromkeys(fields, None)}]
    drawn = []
    for steps in (flat, flat, rising, missing):
        draw_loss_curves(steps, tmp_path / "loss.png")
        with Image.open(tmp_path / "loss.png") as image:
            drawn.append(np.asarray(image.convert("RGB")))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert drawn[3].std() > 10
