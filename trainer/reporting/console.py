"""Output of a run: events.jsonl, JSON lines on stdout, and messages with a progress bar for people."""

import contextlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..common.events import event_line, event_record
from .run_dir import RunDir
from .trackers import Tracker

PHASES = {
    "keep": "making prior preservation images",
    "prior": "estimating how many of the unlabeled images are sensitive",
    "encode": "encoding images and captions",
    "load": "loading the U-Net",
    "calibrate": "measuring the base model's error",
    "pictures": "making pictures",
}
LINES = 10  # over a run, where no terminal shows a bar


class Console:
    """Writes events to the run folder and shows them. With `jsonl`, stdout is JSON only; messages go to stderr."""

    def __init__(
        self,
        run_dir: RunDir,
        *,
        jsonl: bool,
        logging_dir: Path | None = None,
        is_silent: bool = False,
        tracker: Callable[[], Tracker] | None = None,
    ) -> None:
        """Args: tracker: begins one, at the first step."""
        self.run_dir, self.jsonl = run_dir, jsonl
        self.is_silent = is_silent  # only the first of several processes prints and writes
        self.bar: tqdm | None = None
        self._logging_dir = logging_dir
        self._tensorboard: Any = None
        self._begin_tracker = tracker
        self._tracker: Tracker | None = None
        self.phase = ""

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event to events.jsonl, print it with --events jsonl, and show it to people."""
        if self.is_silent:
            return
        record = event_record(event, **fields)
        self.run_dir.append_event(record)
        if self.jsonl:
            print(event_line(record), flush=True)
        show = getattr(self, f"_{event}", None)
        if show:
            show(fields)

    def say(self, text: str) -> None:
        """Print a message above the progress bar."""
        if self.is_silent:
            return
        tqdm.write(text, file=sys.stderr if self.jsonl else sys.stdout)

    def end(self, text: str) -> None:
        """End the progress bar's line, and print a run's last message on stderr."""
        self._close_bar()
        print(text, file=sys.stderr)

    def _log(self, logging_dir: Path, fields: dict[str, Any]) -> None:
        """Write a step's numbers for TensorBoard, which is imported at the first step."""
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(logging_dir / self.run_dir.name)
        for name, value in fields.items():
            if name not in ("step", "of") and math.isfinite(value):
                self._tensorboard.add_scalar(name, value, fields["step"])

    def _track(self, begin: Callable[[], Tracker], fields: dict[str, Any]) -> None:
        """Send a step's numbers to the tracker. Where it fails, the training goes on without it."""
        try:
            self._tracker = self._tracker or begin()
            values = {k: v for k, v in fields.items() if k not in ("step", "of") and v is not None and math.isfinite(v)}
            self._tracker.log(values, fields["step"])
        except Exception as error:  # the network, a missing login: each tracker has its own
            self._begin_tracker = None
            self.emit("warning", message=f"--log-with: given up ({str(error).strip() or repr(error)})")

    def close(self) -> None:
        """Close TensorBoard's file, the tracker and the progress bar."""
        if self._tensorboard:
            self._tensorboard.close()
        if self._tracker:
            with contextlib.suppress(Exception):  # as in _track
                self._tracker.close()
        self._close_bar()

    def _close_bar(self) -> None:
        if self.bar:
            self.bar.close()
            self.bar = None

    def _phase(self, fields: dict[str, Any]) -> None:
        if fields["name"] in PHASES and fields["name"] != self.phase:
            self.say(f"{PHASES[fields['name']]} …")
        if fields["name"] == "train":
            savings = {"parts checkpointed": fields["checkpointing"], "blocks in CPU memory": fields["offload"]}
            more = "".join(f", {count} {what}" for what, count in savings.items() if count)
            more += f", weights kept in {fields['weights']}" if fields["weights"] != fields["precision"] else ""
            self.say(
                f"training on {fields['device']} in {fields['precision']}, "
                f"{fields['micro_batch']} samples at once{more}"
            )
        self.phase = fields["name"]

    def _step(self, fields: dict[str, Any]) -> None:
        if self._logging_dir:
            self._log(self._logging_dir, fields)
        if self._begin_tracker:
            self._track(self._begin_tracker, fields)
        step, of = fields["step"], fields["of"]
        values = {"loss": fields["loss"], "normal risk": fields["normal_risk"], "sensitive/unlabeled": fields["ratio"]}
        shown = {name: f"{value:.3f}" for name, value in values.items() if math.isfinite(value)}
        if not has_terminal():
            if step * LINES // of != (step - 1) * LINES // of:
                self.say(", ".join([f"step {step} of {of}", *(f"{k} {v}" for k, v in shown.items()), *_left(fields)]))
            return
        if self.bar is None:
            self.bar = tqdm(total=of, initial=step - 1, unit="step", dynamic_ncols=True)
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()
        if step == of:
            self._close_bar()

    def _plan(self, fields: dict[str, Any]) -> None:
        parts = ", ".join(f"{name} {fields[name]:.0f}" for name in ("weights", "lora", "activations", "context"))
        total, budget = fields["total_mib"], fields["budget_mib"]
        self.say(f"predicted peak {total:.0f} of {budget:.0f} MiB ({parts})")

    def _prior(self, fields: dict[str, Any]) -> None:
        self.say(fields["message"])

    def _warning(self, fields: dict[str, Any]) -> None:
        self.say(f"warning: {fields['message']}")

    def _sample(self, fields: dict[str, Any]) -> None:
        self.say(f"pictures: {fields['path']}")


def has_terminal() -> bool:
    """Return whether stderr is a terminal: a file or a pipe would keep every state of a bar."""
    return sys.stderr.isatty()


def _left(fields: dict[str, Any]) -> list[str]:
    seconds = (fields["of"] - fields["step"]) * (fields.get("s_per_step") or 0.0)
    return [f"{tqdm.format_interval(seconds)} left"] if seconds else []
