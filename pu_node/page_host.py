"""Describe the program that shows the page (a webui or `python -m trainer ui`), and give it finished LoRAs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from . import launch, result_cache

PREVIEW_PX = 512


@dataclass(frozen=True)
class Host:
    """Folders, checkpoints and the graphics card of the program that shows the page."""

    checkpoints: Callable[[], Mapping[str, Path]]  # name -> file
    roots: Sequence[Path]  # absolute; folders of images must lie below one of these
    output: Path  # of run folders
    lora_folder: Callable[[], Path]  # whose LoRAs the program lists
    # a context that reserves the card; calls its argument, which may raise, while it waits for it
    card: Callable[[Callable[[], None]], AbstractContextManager[Any]]
    rescan: Callable[[], None] = lambda: None  # looks for new checkpoints
    device: str = "auto"  # to train on


def advice() -> str:
    """Return what to do where the trainer's packages are not installed, or nothing if they are."""
    try:
        launch.python()
    except launch.TrainerError as error:
        return str(error)
    return ""


def free_name(host: Host, name: str) -> str:
    """Return the first of name, name-2, name-3, … for which neither a run nor a LoRA exists."""
    # a webui finds a LoRA by its bare name, in any subfolder
    listed = {path.stem for path in host.lora_folder().rglob("*") if path.suffix in _LORAS}
    return result_cache.free_name(name, taken=(host.output, host.lora_folder()), names=listed)


def interrupted(output: Path) -> str | None:
    """Return the name of the training that was written to last and can be resumed; None without one.

    The trainer resumes the same ones: those with a state, or stopped before there was a result.
    """
    runs = [config.parent for config in output.glob("*/config.toml")]
    open_runs = [run for run in runs if _is_resumable(run) and not _is_done(run)]
    return max(open_runs, key=_written, default=output).name if open_runs else None


def _is_resumable(run: Path) -> bool:
    is_fresh = not any(run.with_name(f"{run.name}{end}").exists() for end in (".safetensors", "-model"))
    return is_fresh or any((run / "state").glob("step*.safetensors"))


def _is_done(run: Path) -> bool:
    try:
        lines = (run / "events.jsonl").read_text(encoding="utf-8", errors="replace").rstrip().rsplit("\n", 1)
    except OSError:
        return False
    return '"event": "done"' in lines[-1]


def _written(run: Path) -> float:
    places = (run / name for name in ("config.toml", "events.jsonl", "state"))
    return max(place.stat().st_mtime for place in places if place.exists())


def saved_settings(run: Path) -> dict[str, Any]:
    """Return the settings of a run. Its config.toml has only lines of the form name = JSON."""
    pairs = (line.partition(" = ") for line in (run / "config.toml").read_text(encoding="utf-8").split("\n"))
    return {name: json.loads(value) for name, equals, value in pairs if equals}


_LORAS = (".safetensors", ".pt", ".ckpt")


def publish(lora: Path, folder: Path, *, picture: Path | None, description: str) -> Path:
    """Copy a LoRA to the listed folder, with the picture and notes that webuis show. Return the copy."""
    target = folder / lora.name
    if target != lora:
        result_cache.write(target, lora.read_bytes())
    if picture is not None:
        with Image.open(picture) as found:
            preview = found.convert("RGB")
        preview.thumbnail((PREVIEW_PX, PREVIEW_PX))
        preview.save(target.with_name(f"{target.stem}.preview.png"))
    notes = {
        "description": description,
        "sd version": "SD1",
        "activation text": "",
        "preferred weight": 1.0,
        "negative text": "",
        "notes": "",
    }
    text = json.dumps(notes, indent=4, ensure_ascii=False)
    result_cache.write(target.with_name(f"{target.stem}.json"), text.encode())
    return target
