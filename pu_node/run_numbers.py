"""Read the numbers of a training from its events.jsonl, so that a graph can use them. Standard library only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNKNOWN = -1.0  # of a share that nobody measured
INTERVAL = re.compile(r"95 % interval (\d\.\d+) to (\d\.\d+)")


@dataclass(frozen=True)
class Numbers:
    """Shares are UNKNOWN where they were not measured."""

    rate_before: float
    rate_after: float
    prior: float
    prior_low: float
    prior_high: float
    losses: list[float]  # by step


def read(run: Path, prior: float | None) -> Numbers:
    """Return the numbers of a run's folder. Args: prior: where it was given; it then has no interval."""
    done: dict[str, Any] = {}
    value, low, high, losses = prior or UNKNOWN, UNKNOWN, UNKNOWN, []
    for event in _events(run / "events.jsonl"):
        if event["event"] == "step" and _is_number(event.get("loss")):
            losses.append(event["loss"])
        elif event["event"] == "prior":
            value = event["value"]
            low, high = interval(event["message"], or_else=(low, high))
        elif event["event"] == "done":
            done = event
    before, after = (float(done.get(f"rate_{kind}", UNKNOWN)) for kind in ("before", "after"))
    return Numbers(before, after, value, low, high, losses)


def interval(text: str, or_else: tuple[float, float] = (UNKNOWN, UNKNOWN)) -> tuple[float, float]:
    """Return the interval that the trainer tells with an estimate of the prior."""
    found = INTERVAL.search(text)
    return (float(found[1]), float(found[2])) if found else or_else


def _events(file: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError), file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with suppress(ValueError):  # cut off when the trainer was killed
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
