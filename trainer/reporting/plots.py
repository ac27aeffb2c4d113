"""Plots as PNG: a run's curves, the rate over the LoRA's strength, several runs side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.files import replacing
from .run_history import RunSummary

if TYPE_CHECKING:
    pass


def draw_loss_curves(steps: list[dict[str, Any]], path: Path) -> None:
    """Losses by kind, and the sensitive loss over the unlabeled one: apart is good."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [e["step"] for e in steps]
    smooth = lambda key: running_mean([math.nan if e[key] is None else e[key] for e in steps])  # noqa: E731
    left.plot(x, smooth("risk_unlabeled"), label="unlabeled loss")
    left.plot(x, smooth("risk_sensitive"), label="sensitive risk")
    left.plot(x, smooth("normal_risk"), label="normal risk R")
    left.set_xlabel("step")
    left.legend()
    right.plot(x, smooth("ratio"), color="tab:red")
    right.axhline(1, color="grey", linewidth=0.8)
    right.set_xlabel("step")
    right.set_title("sensitive / unlabeled loss", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def running_mean(values: list[float], keep: float = 0.95) -> list[float]:
    """Exponential mean, corrected at the start, so that curves show more than noise."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out


def draw_strengths(points: list[dict[str, Any]], path: Path) -> None:
    """Rate (where judged) and drift over the LoRA's strength."""
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


CURVES = {"ratio": "sensitive / unlabeled loss", "normal_risk": "normal risk R"}


def draw_comparison(runs: Sequence[RunSummary], path: Path) -> None:
    from matplotlib.figure import Figure

    pass

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        for run in runs:
            values = [float("nan") if s[key] is None else s[key] for s in run.steps]
            axes.plot([s["step"] for s in run.steps], running_mean(values), label=run.name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
