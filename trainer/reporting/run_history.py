"""Reads the settings and results of a run, finished or not, from its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..config.arguments import read_toml
from ..config.train_config import TrainConfig
from .run_dir import RunDir

# settings that do not change what is learned
BOOKKEEPING = {"name", "output_dir", "save_state_every", "keep_states", "keep_cache", "logging_dir"}


@dataclass(frozen=True)
class RunSummary:
    """The settings and results of one run."""

    name: str
    folder: Path
    settings: dict[str, Any]
    steps: list[dict[str, Any]]  # step events
    done: dict[str, Any]  # the done event; empty where the run is not finished
    evaluation: dict[str, Any]  # evaluate.json; empty where the run was not evaluated


def read_run(folder: Path) -> RunSummary:
    """Read a run. Args: folder: the run's folder, or its LoRA. Raises: UserError if it is no run."""
    folder = folder.with_suffix("") if folder.suffix == ".safetensors" else folder
    if not (folder / "config.toml").is_file():
        raise UserError(f"{folder}: not the folder of a run (no config.toml in it)")
    problems: list[str] = []
    settings = read_toml(folder / "config.toml", problems)
    if problems:
        raise UserError("\n".join(problems))
    events = RunDir(folder.parent, folder.name).events()
    evaluated = folder.with_name(f"{folder.name}-evaluate") / "evaluate.json"
    return RunSummary(
        folder.name,
        folder,
        TrainConfig(**settings).model_dump(mode="json"),
        [e for e in events if e["event"] == "step"],
        next((e for e in reversed(events) if e["event"] == "done"), {}),
        json.loads(evaluated.read_text(encoding="utf-8")) if evaluated.is_file() else {},
    )
