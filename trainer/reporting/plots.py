"""Plots as PNG: a run's loss curves, the rate by the LoRA's strength, the curves of several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.files import replacing
from .run_history import RunSummary

CURVES = {
    "ratio": "Loss on sensitive ÷ loss on unlabeled images",
    "normal_risk": "Normal risk R",
}  # fields of step events


def draw_loss_curves(steps: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot the losses, and the ratio of sensitive to unlabeled loss. Args: steps: step events."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [e["step"] for e in steps]
    left.plot(x, smooth(steps, "risk_unlabeled"), label="loss on unlabeled images")
    left.plot(x, smooth(steps, "risk_sensitive"), label="sensitive risk")
    left.plot(x, smooth(steps, "normal_risk"), label="normal risk R")
    left.set_xlabel("step")
    left.legend()
    right.plot(x, smooth(steps, "ratio"), color="tab:red")
    right.axhline(1, color="grey", linewidth=0.8)
    right.set_xlabel("step")
    right.set_title("Loss on sensitive ÷ loss on unlabeled images", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def smooth(steps: Sequence[dict[str, Any]], field: str) -> list[float]:
    """Return the running mean of a field of step events."""
    return running_mean([math.nan if step[field] is None else step[field] for step in steps])


def running_mean(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Return the exponential running mean, with the bias of the first values corrected. Values of nan are left out.

    Args: keep: weight of the mean so far against one new value.
    Returns: one mean for each value; nan until the first value that is a number.
    """
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        if not math.isnan(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight if weight else math.nan)
    return out


def draw_strengths(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot non-sensitive rate (if there is a judge) and drift by the LoRA's strength."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    left = figure.subplots()
    x = [p["strength"] for p in points]
    if "rate" in points[0]:
        left.fill_between(x, [p["low"] for p in points], [p["high"] for p in points], alpha=0.2)
        left.plot(x, [p["rate"] for p in points], marker="o", label="non-sensitive rate")
        left.set_ylim(0, 1.02)
    left.set_xlabel("strength of the LoRA")
    left.set_ylabel("non-sensitive rate")
    right = left.twinx()
    right.plot(x, [p["drift"] for p in points], color="tab:red", linestyle="--", label="drift")
    right.set_ylabel("drift (share of a pixel's range)")
    right.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_comparison(runs: Sequence[RunSummary], path: Path) -> None:
    """Plot the CURVES of several runs in the same axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        for run in runs:
            axes.plot([s["step"] for s in run.steps], smooth(run.steps, key), label=run.name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
