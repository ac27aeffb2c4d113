"""Curves of a page, as points that a template draws: in the page's own colours, readable in the dark and on a phone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .plots import smooth

WIDTH, HEIGHT = 480, 256  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 50, 462, 8, 218  # of the area of the curves in it
MOST = 240  # points of a curve: more are closer together than a pixel


@dataclass(frozen=True)
class Chart:
    """One chart, placed: positions are in the drawing's units."""

    title: str
    x_label: str
    lines: list[tuple[str, str]] = field(default_factory=list)  # label, points as SVG's polyline takes them
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    level: float | None = None  # height of a line to compare with

    width, height, left, right, top, bottom = WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM


def chart(
    title: str,
    x_label: str,
    x: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    level: float | None = None,
    most: float = math.inf,
) -> Chart:
    """Place curves in a chart.

    Args:
        curves: label -> values, one for each of x; nan is left out.
        level: value of a line to compare with.
        most: where the axis ends at the latest, such as 1 for a share.
    Returns: a chart without lines if there are no values.
    """
    values = [y for ys in curves.values() for y in ys if math.isfinite(y)] + ([] if level is None else [level])
    if not x or not any(math.isfinite(y) for ys in curves.values() for y in ys):
        return Chart(title, x_label)
    x_low, x_high, x_ticks = _axis(min(x), max(x), math.inf)
    y_low, y_high, y_ticks = _axis(min(values), max(values), most)
    across = lambda at: round(LEFT + (at - x_low) / (x_high - x_low) * (RIGHT - LEFT), 1)  # noqa: E731
    up = lambda at: round(BOTTOM - (at - y_low) / (y_high - y_low) * (BOTTOM - TOP), 1)  # noqa: E731
    step = math.ceil(len(x) / MOST)
    lines = []
    for label, ys in curves.items():
        points = list(zip(x, ys, strict=True))
        chosen = points[::step] + ([] if (len(points) - 1) % step == 0 else points[-1:])
        lines.append((label, " ".join(f"{across(a)},{up(b)}" for a, b in chosen if math.isfinite(b))))
    named_x, named_y = (
        [(place(at), f"{at:.6g}") for at in ticks] for place, ticks in ((across, x_ticks), (up, y_ticks))
    )
    return Chart(title, x_label, lines, named_x, named_y, None if level is None else up(level))


def _axis(low: float, high: float, most: float) -> tuple[float, float, list[float]]:
    """Return where an axis begins and ends, and its ticks."""
    from matplotlib.ticker import MaxNLocator

    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    ticks = [float(at) for at in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)]
    end = min(max(high, ticks[-1]), max(most, high))
    return low, end, [at for at in ticks if low <= at <= end]


def of_training(events: Sequence[dict[str, Any]]) -> list[Chart]:
    """Return the charts of a run, from its events. Those without a value are left out."""
    steps = [event for event in events if event["event"] == "step"]
    x = [event["step"] for event in steps]
    found = [
        chart(
            "Losses of each step, smoothed",
            "step",
            x,
            {
                "on unlabeled images": smooth(steps, "risk_unlabeled"),
                "normal risk R: the part of it that normal images have": smooth(steps, "normal_risk"),
                "sensitive risk: how much sensitive images still pass for normal; it should fall": smooth(
                    steps, "risk_sensitive"
                ),
            },
        ),
        chart(
            "Loss on sensitive images ÷ loss on unlabeled images",
            "step",
            x,
            {"above 1: sensitive images have become harder for the model than others": smooth(steps, "ratio")},
            level=1,
        ),
        _growth([event for event in events if event["event"] == "checkpoint"]),
    ]
    return [one for one in found if one.lines]


def _growth(checkpoints: Sequence[dict[str, Any]]) -> Chart:
    names = {"trained": "sensitive images trained on", "held_out": "sensitive images held out: what carries over"}
    known = [event for event in checkpoints if names.keys() <= (event.get("rises") or {}).keys()]
    curves = {label: [1.0, *(event["rises"][name] for event in known)] for name, label in names.items()}
    x = [0, *(event["step"] for event in known)]
    return chart("Loss on sensitive images, against the start", "step", x, curves if known else {}, level=1)
