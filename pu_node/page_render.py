"""Render a training for the page: pictures, and HTML in which all text of the run is escaped. Without gradio."""

from __future__ import annotations

import html
from pathlib import Path

from PIL import Image

from . import drawing
from .training_job import State, duration

SIDE_PX = 512  # longest side of a picture on the page; the report has full size


def curve(state: State) -> Image.Image | None:
    """Return the loss curve; None before the first step."""
    return drawing.curve(state.unlabeled, state.sensitive, state.of) if state.step else None


def pictures(state: State) -> Image.Image | None:
    """Return the pictures before and after training if they exist, else the newest of the training."""
    found = state.samples
    if "after" in found:
        return drawing.side_by_side([(kind, _opened(found[kind])) for kind in ("before", "after") if kind in found])
    return _opened(found["step"]) if "step" in found else None


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        found = image.convert("RGB")
    found.thumbnail((SIDE_PX, SIDE_PX))
    return found


def status(state: State) -> str:
    """Return phase, progress bar and messages as HTML."""
    if state.phase == "idle":
        return "No training yet."
    words = html.escape(f"{state.name}: {state.ended or state.phase}")
    if state.step and state.is_active:
        words += f", step {state.step} of {state.of}"
        words += f", {duration(state.seconds_left)} left" if state.seconds_left else ""
    lines = [f"<b>{words}</b>"]
    if state.of:
        lines.append(f"<progress value='{state.step}' max='{state.of}'></progress>")
    lines += [f"<pre>{html.escape(text)}</pre>" for text in state.notes]
    lines += [f"<pre>warning: {html.escape(text)}</pre>" for text in state.warnings]
    if state.message:
        lines.append(f"<pre>{html.escape(state.message)}</pre>")
    return "".join(lines)
