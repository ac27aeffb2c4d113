"""Show a training on its node while it runs: phase, time left, notes and warnings, a bar, and a picture."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from . import comfy_host, drawing, launch, widgets
from .training_job import PHASES, duration

SHOW_EVERY_S = 0.5  # each picture is a JPEG for the browser
LINE = 56  # characters of text in a picture


class View:
    """What the running node shows. It takes the trainer's events one by one."""

    def __init__(self, notes: Sequence[str] = ()) -> None:
        self.phase = "starting the trainer"
        self.notes = list(notes)  # for the report, too
        self.step, self.of, self.seconds_left = 0, 0, 0.0
        self.unlabeled: list[float | None] = []  # loss by step
        self.sensitive: list[float | None] = []
        self.sample: Path | None = None
        self._bar: comfy_host.Progress | None = None
        self._shown_at = 0.0
        self._show(0, 1)

    def lines(self) -> list[str]:
        """Return the text: what is being done, then the notes."""
        first = self.phase
        if self.step and self.phase == PHASES["train"]:
            left = f", {duration(self.seconds_left)} left" if self.seconds_left else ""
            first += f", step {self.step} of {self.of}{left}"
        return [*first.splitlines(), *self.notes]

    def fail(self, reason: str) -> None:
        """Show why the training ended, in place of what was being done."""
        self.phase = reason
        self._show(self.step, max(1, self.of), is_urgent=True)

    def take(self, event: launch.Event) -> None:
        """Show what an event tells. Raises: ComfyUI's own exception once the user has cancelled."""
        kind = event["event"]
        if kind == "step":
            self._step(event)
        elif kind == "sample":
            self.sample = Path(event["path"])
            self._show(self.step, max(1, self.of))
        elif kind == "phase" and event["name"] in PHASES:
            is_new, done, total = self.phase != PHASES[event["name"]], event.get("done", 0), event.get("total") or 1
            self.phase = PHASES[event["name"]]
            self._show(done, total, is_urgent=is_new or done == total)
        elif kind in ("prior", "warning"):
            text = widgets.in_node_words(event["message"])
            self._note(f"warning: {text}" if kind == "warning" else text)
        elif kind == "plan":
            self._note(f"predicted peak: {event['total_mib']:.0f} of {event['budget_mib']:.0f} MiB")

    def _note(self, text: str) -> None:
        if text not in self.notes:  # a start that is tried again warns again
            self.notes.append(text)
        comfy_host.say("\n".join(self.lines()))

    def _step(self, event: launch.Event) -> None:
        loss, ratio = event["risk_unlabeled"], event["ratio"]
        self.step, self.of, self.phase = event["step"], event["of"], PHASES["train"]
        self.seconds_left = (self.of - self.step) * (event.get("s_per_step") or 0.0)
        missing = [None] * (self.step - 1 - len(self.unlabeled))  # of a training that goes on from an earlier step
        self.unlabeled += [*missing, loss]
        self.sensitive += [*missing, None if loss is None or ratio is None else ratio * loss]
        self._show(self.step, self.of, is_urgent=self.step == self.of)

    def _show(self, done: int, total: int, *, is_urgent: bool = False) -> None:
        """Show bar, picture and text at once, so that they tell the same; not more often than people can follow."""
        if not is_urgent and time.monotonic() - self._shown_at < SHOW_EVERY_S:
            return
        if self._bar is None or self._bar.total != total:
            self._bar = comfy_host.Progress(total)
        self._shown_at = time.monotonic()
        self._bar.show(done, self._picture())
        comfy_host.say("\n".join(self.lines()))

    def _picture(self) -> Image.Image:
        if self.unlabeled:
            return drawing.live(self.unlabeled, self.sensitive, self.of, self.sample)
        return drawing.text([part for line in self.lines() for part in textwrap.wrap(line, LINE)])
