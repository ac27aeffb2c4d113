"""Trainings that differ in one setting, one after the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..builtin import CONFIG
from ..common.errors import UserError
from ..common.trainer_process import run_trainer
from ..config.arguments import parse
from ..config.train_config import TrainConfig
from ..reporting.run_dir import RunDir, resume_arguments
from ..reporting.run_history import BOOKKEEPING, RunSummary, read_run


def sweep(text: str, rest: Sequence[str], judging: Sequence[str]) -> list[Path]:
    """Train a run for each value of one setting, one after the other, each in a process of its own.

    Args: text: FIELD=A,B. rest: options of the trainer. judging: options of evaluate; none: not evaluated.
    Returns: the run folders. Raises: UserError before anything is trained; Stopped.
    """
    name, _, values = text.partition("=")
    option = f"--{name.replace('_', '-').lstrip('-')}"
    if not values:
        raise UserError(f"--sweep: must be FIELD=A,B, got {text!r}")
    folders: dict[Path, list[str]] = {}
    finished = set()
    for value in values.split(","):
        config = parse([*rest, f"{option}={value}"], CONFIG).config
        run_name = f"{config.name}-{option[2:]}-{value}"
        parse([*rest, f"{option}={value}", f"--name={run_name}"], CONFIG)
        folder = config.output_dir / run_name
        folders[folder] = [*rest, f"{option}={value}", f"--name={run_name}"]
        if (folder / "config.toml").exists() and (known := read_run(folder)).done:
            _refuse_another(known, config)
            finished.add(folder)
    if judging:
        from .options import read_options

        read_options([*judging], lora_follows=True)
    for folder, words in folders.items():
        run = RunDir(folder.parent, folder.name)
        if folder not in finished:
            run_trainer(resume_arguments(run, words))
        if judging:
            out = folder.with_name(f"{folder.name}-evaluate")
            run_trainer(["evaluate", f"--lora={run.lora}", f"--out={out}", *judging])
    return list(folders)


def _refuse_another(known: RunSummary, config: TrainConfig) -> None:
    """Raise UserError if the finished run of this name was trained with other settings than requested."""
    wanted = config.model_dump(mode="json")
    settled = {"data"} | {name for name, value in wanted.items() if value == "auto"}  # by the run itself
    settled |= {name for name in ("unlabeled", "sensitive") if wanted[name] is None}
    other = [
        f"--{name.replace('_', '-')} {known.settings[name]}, not {value}"
        for name, value in wanted.items()
        if name not in BOOKKEEPING | settled and _same_place(known.settings[name]) != _same_place(value)
    ]
    if other:
        raise UserError(
            f"{known.folder} is finished, with {'; '.join(other)}. Choose another --output-dir, or remove it"
        )


def _same_place(value: Any) -> Any:
    return str(Path(value).resolve()) if isinstance(value, str) and Path(value).exists() else value
