"""The surroundings of a run: device, processes, folder, events, and the check whether to stop."""

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
    """What does not change from the start of a run to its end."""

    device: torch.device
    ranks: Ranks  # the processes that train this LoRA together; only the first one writes
    run_dir: RunDir
    emit: Emit  # emit(event, **fields)
    check: Check  # raises Stopped when the user asked for it; called before each pass through a model

    def warn(self, text: str) -> None:
        """Emit a warning."""
        self.emit("warning", message=text)

    def phase(self, name: str, **fields: Any) -> None:
        """Emit that a phase of the run begins, or how far it is."""
        self.emit("phase", name=name, **fields)

    def progress(self, phase: str) -> Progress:
        """Return a function (what, done, of) that reports a phase's progress; it raises Stopped on request."""

        def report(what: str, done: int, of: int) -> None:
            self.check()
            self.phase(phase, what=what, done=done, total=of)

        return report
