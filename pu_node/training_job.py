"""Run the page's one training at a time in a thread of its own, so that it continues when the page is closed."""

from __future__ import annotations

import copy
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from . import launch, page_host
from .page_host import Host

PICTURES = 5  # times that pictures are made during training
PHASES = {
    "keep": "making pictures for prior preservation",
    "encode": "encoding images and captions",
    "prior": "estimating how many of the unlabeled images are sensitive",
    "load": "loading the model",
    "calibrate": "measuring the base model's error",
    "train": "training",
    "pictures": "making pictures before and after",
}


Result = TypeVar("Result")


def duration(seconds: float) -> str:
    """Return a time in words."""
    minutes = int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(seconds % 60)} s"


class Cancelled(Exception):
    """The user cancelled the training."""


@dataclass
class State:
    """A snapshot of a training for the page. Readers get copies."""

    phase: str = "idle"
    ended: str = ""  # "", "done", "cancelled" or "failed"
    message: str = ""
    name: str = ""
    step: int = 0
    of: int = 0
    seconds_left: float | None = None
    unlabeled: list[float] = field(default_factory=list)  # loss by step
    sensitive: list[float | None] = field(default_factory=list)
    samples: dict[str, Path] = field(default_factory=dict)  # newest picture by kind: step, before, after
    notes: list[str] = field(default_factory=list)  # on the estimate of the prior
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # to download

    @property
    def is_active(self) -> bool:
        return self.phase != "idle" and not self.ended


class Job:
    """The page's training: start it, read its state, cancel it, from any thread."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._changed = threading.Condition()
        self._state, self._version = State(), 0
        self._thread: threading.Thread | None = None
        self._is_cancelled = threading.Event()
        self._downloads = tempfile.TemporaryDirectory(prefix="pu-unlearn-")  # every gradio may serve files from here

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, settings: Mapping[str, Any]) -> None:
        """Start a training. Raises: ValueError if one is running."""
        with self._changed:
            if self.is_running:
                raise ValueError("a training is running: wait for it, or cancel it")
            self._is_cancelled.clear()
            name = page_host.free_name(self.host, settings["name"])
            self._state = State(phase="waiting for the card", name=name, of=settings["steps"])
            every = max(1, settings["steps"] // PICTURES)
            whole = {**settings, "name": name, "sample_every": every, "output_dir": str(self.host.output)}
            whole["sidecars"] = False  # the page writes its own beside the copy that the program lists
            self._begin(whole, whole)
        self._update()

    def resume(self) -> None:
        """Continue the training that was interrupted last. Raises: ValueError if one is running, or there is none."""
        with self._changed:
            if self.is_running:
                raise ValueError("a training is running: wait for it, or cancel it")
            output = self.host.output
            if (name := page_host.interrupted(output)) is None:
                raise ValueError(f"nothing to resume: {output} holds no training that was interrupted")
            settings = {**page_host.saved_settings(output / name), "name": name, "output_dir": str(output)}
            asked = {"resume": True, "name": name, "output_dir": str(output), "device": self.host.device}
            self._is_cancelled.clear()
            self._state = State(phase="waiting for the card", name=name, of=settings["steps"])
            self._begin(asked, settings)
        self._update()

    def _begin(self, asked: dict[str, Any], settings: dict[str, Any]) -> None:
        """Start the thread. Args: asked: what the trainer is called with. settings: all of the run."""
        self._thread = threading.Thread(target=self._run, args=(asked, settings), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the training to stop; its state is saved."""
        self._is_cancelled.set()
        if self.is_running:
            self._update(phase="stopping and saving")

    def state(self, seen: int = -1, timeout_s: float = 0.0) -> tuple[State, int]:
        """Return the state and its number. Args: seen: a number; wait up to timeout_s for a newer state."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout_s)
            return copy.deepcopy(self._state), self._version

    def _update(self, **changes: Any) -> None:
        with self._changed:
            for name, value in changes.items():
                setattr(self._state, name, value)
            self._version += 1
            self._changed.notify_all()

    def _check(self) -> None:
        if self._is_cancelled.is_set():
            raise Cancelled

    def _run(self, asked: dict[str, Any], settings: dict[str, Any]) -> None:
        try:
            launch.python(is_checked=True)  # before the webui's model is taken off the card
            with self.host.card(self._check):
                self._update(phase="starting the trainer")
                for event in launch.follow(launch.command([], asked), self._check, grace_s=launch.SAVING_GRACE_S):
                    self._take(event, settings)
            self._update(ended="done")
        except Cancelled:
            self._update(ended="cancelled", message=self._how_to_resume(settings))
        except launch.TrainerError as error:
            self._update(ended="failed", message=str(error))
        except Exception as error:  # nothing else would show the exception of a thread
            message = f"{type(error).__name__}: {error}"
            if self._state.files:  # the LoRA is finished; for example, the webui's model could not be loaded again
                self._update(ended="done", warnings=[*self._state.warnings, message])
            else:
                self._update(ended="failed", message=message)

    def _how_to_resume(self, settings: Mapping[str, Any]) -> str:
        """Return the message after a cancelled training."""
        run, steps = self.host.output / settings["name"], self._state.step
        if not any(run.glob("state/step*.safetensors")) and not (run / "config.toml").is_file():
            return f"Stopped at step {steps}, before the first save: there is nothing to resume." if steps else ""
        resume = f'python -m trainer --resume --name "{settings["name"]}" --output-dir "{settings["output_dir"]}"'
        when = f"at step {steps}" if steps else "before the first step"
        return f"Stopped {when}. Resume continues it; without this page: {resume}"

    def alone(self, work: Callable[[], Result]) -> Result:
        """Run something short with the card reserved as for a training. Raises: ValueError if a training is running."""
        if self.is_running:
            raise ValueError("a training is running: wait for it, or cancel it")
        with self.host.card(lambda: None):
            return work()

    def _take(self, event: launch.Event, settings: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            self._step(event)
        elif kind == "phase" and event["name"] in PHASES and not self._is_cancelled.is_set():
            self._update(phase=PHASES[event["name"]])
        elif kind == "sample":
            self._update(samples={**self._state.samples, event["kind"]: Path(event["path"])})
        elif kind == "prior":
            settings["prior"] = event["value"]  # the estimate, for the description of the LoRA
            self._update(notes=[*self._state.notes, event["message"]])
        elif kind == "warning":
            self._update(warnings=[*self._state.warnings, event["message"]])
        elif kind == "done":
            self._done(event, settings)

    def _step(self, event: launch.Event) -> None:
        loss, ratio = event["risk_unlabeled"], event["ratio"]
        left = (event["of"] - event["step"]) * event["s_per_step"] if event.get("s_per_step") else None
        with self._changed:
            self._state.unlabeled.append(loss)
            self._state.sensitive.append(None if ratio is None or loss is None else ratio * loss)
        self._update(step=event["step"], of=event["of"], seconds_left=left)

    def _done(self, event: launch.Event, settings: Mapping[str, Any]) -> None:
        recipe = ", ".join(f"{name} {settings[name]}" for name in ("objective", "steps", "prior", "temperature"))
        rates = [line for line in event["summary"].splitlines() if not line.startswith(("LoRA:", "report:"))]
        picture = self._state.samples.get("after")
        description = "\n".join([f"Made with PU Unlearn: {recipe}.", *rates])
        target = page_host.publish(
            Path(event["lora"]), self.host.lora_folder(), picture=picture, description=description
        )
        report = Path(self._downloads.name) / f"{target.stem}-report.html"
        lora = Path(self._downloads.name) / target.name
        shutil.copyfile(target, lora)
        shutil.copyfile(event["report"], report)
        words = [*rates, f"The LoRA is {target}", f"In a prompt: <lora:{target.stem}:1>"]
        self._update(files=[lora, report], message="\n".join(words))
