"""Where and for whom a run works: device, processes, folder, events, and the user's wish to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..common.distributed import Ranks
from ..common.events import Emit
from ..common.interrupts import Check, Progress
from .run_dir import RunDir

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RunContext:
    """The same from the start of a run to its end."""

    device: torch.device
    ranks: Ranks  # processes that train this LoRA together; only the first one writes
    run_dir: RunDir
    emit: Emit  # emit(event, **fields)
    check: Check  # raises Stopped when the user asked for it; called before each pass through a model

    def warn(self, text: str) -> None:
        self.emit("warning", message=text)

    def phase(self, name: str, **fields: Any) -> None:
        self.emit("phase", name=name, **fields)

    def progress(self, phase: str) -> Progress:
        """Return a function (what, done, of) that reports a phase's progress, and stops it when the user asked to."""

        def report(what: str, done: int, of: int) -> None:
            self.check()
            self.phase(phase, what=what, done=done, total=of)

        return report
