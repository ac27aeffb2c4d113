"""Charts: points where they belong, whatever the values."""

import math

import pytest

from trainer.reporting.curves import BOTTOM, LEFT, MOST, RIGHT, TOP, chart, of_training


def points(line):
    return [tuple(map(float, pair.split(","))) for pair in line[1].split()]


def test_points_by_hand():
    """x from 0 to 10, y from 0 to 1: the corners of the area, and its middle."""
    found = chart("t", "x", [0, 5, 10], {"a": [0.0, 0.5, 1.0]})
    middle = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2
    assert points(found.lines[0]) == [(LEFT, BOTTOM), middle, (RIGHT, TOP)]
    assert (middle[0] - (RIGHT - LEFT) / 10, "4") in found.x_ticks
    assert (BOTTOM, "0") in found.y_ticks


def test_values_that_are_missing_leave_the_curve_whole():
    found = chart("t", "x", [0, 1, 2], {"a": [math.nan, 1.0, 3.0], "b": [math.nan] * 3}, level=1)
    assert len(points(found.lines[0])) == 2
    assert found.lines[1][1] == ""
    assert found.level == BOTTOM


def test_a_chart_without_values_has_no_lines():
    for x, values in (([], []), ([1], [math.nan])):
        assert chart("t", "x", x, {"a": values}, level=1).lines == []


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0, 1e-9])
def test_a_constant_is_in_the_area(value):
    found = chart("t", "x", [1, 2], {"a": [value, value]})
    assert all(TOP < y < BOTTOM for _, y in points(found.lines[0]))


def test_long_curves_are_thinned_and_keep_both_ends():
    n = 10 * MOST + 3
    found = points(chart("t", "x", range(n), {"a": [float(i) for i in range(n)]}).lines[0])
    assert len(found) <= MOST + 2
    assert (found[0][0], found[-1][0]) == (LEFT, pytest.approx(RIGHT, abs=25))


def test_a_share_ends_at_one():
    assert chart("t", "x", [0, 1], {"a": [0.57, 1.0]}, most=1).y_ticks[-1] == (TOP, "1")


def test_charts_of_a_run_without_a_checkpoint_or_a_ratio():
    step = {"event": "step", "step": 1, "risk_unlabeled": 1.0, "risk_sensitive": 0.5, "normal_risk": 0.7, "ratio": None}
    assert [one.title for one in of_training([step])] == ["Losses of each step, smoothed"]
    growth = {"event": "checkpoint", "step": 1, "rises": {"normal": 1.0, "trained": 1.2, "held_out": 1.1}}
    found = of_training([{**step, "ratio": 1.5}, growth])
    assert [len(one.lines) for one in found] == [3, 1, 2]
    assert len(points(found[2].lines[0])) == 2  # from 1 at the start
    assert of_training([]) == []
