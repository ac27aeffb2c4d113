"""What a resumed run must share with the run it continues: settings, images, captions, model, number formats."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..config.train_config import FREE_ON_RESUME, TrainConfig
from ..models import base_model

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..data.folders import Folders
    from ..data.latent_cache import Encoded
    from ..memory.memory_plan import MemoryPlan
    from ..models.base_model import Base


OTHER = "--resume: not the run that was begun"


def digest(folders: Folders, encoded: Encoded, base: Base) -> str:
    """Of all that is learned from, in its order, and of the model: of no place on the disk."""
    latents: dict[Path, list[str]] = defaultdict(list)
    for (path, _), key in encoded.latent_keys.items():
        latents[path].append(key)
    parts = [base_model.part_hash(base, "unet")]
    for kind in ("unlabeled", "sensitive", "held_out"):
        for sample in getattr(folders, kind):
            parts += [kind, *latents[sample.path], encoded.text_keys[sample.caption] if sample.caption else ""]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def record(config: TrainConfig, data: str, plan: MemoryPlan, device: torch.device) -> dict[str, Any]:
    """What a state keeps of its run, as JSON values. Args: data: its `digest`."""
    return {
        "settings": config.model_dump(mode="json"),
        "data": data,
        "formats": {"device": device.type, "precision": plan.precision, "weights": plan.weights},
    }


def with_formats(config: TrainConfig, state: dict[str, Any] | None, device: torch.device) -> TrainConfig:
    """The settings with the number formats that the run has had so far, on that kind of device.

    Left to "auto" they could come out otherwise, where less memory is free now: the calibration would be another
    model's.
    """
    formats = state["run"]["formats"] if state else {}
    if formats.get("device") != device.type:
        return config
    names = [name for name in ("precision", "weights") if getattr(config, name) == "auto"]
    return config.model_copy(update={name: formats[name] for name in names})


def check_settings(state: dict[str, Any], config: TrainConfig) -> None:
    """Raises: UserError with the list of differences, if state was taken from a run with other settings."""
    if "run" not in state:
        raise UserError("--resume: its state was saved by an older version, which did not say of what. Train it anew.")
    before, now = state["run"]["settings"], config.model_dump(mode="json")
    changed = [
        f"--{name.replace('_', '-')} was {before[name]}, is {now[name]}"
        for name in before.keys() & now.keys() - FREE_ON_RESUME
        if before[name] != now[name]
    ]
    if changed:
        raise UserError(f"{OTHER}: {'; '.join(sorted(changed))}")


def check_data(state: dict[str, Any], data: str) -> None:
    """Raises: UserError if state was taken from a run on other images, or another model. Args: data: their `digest`."""
    if state["run"]["data"] != data:
        raise UserError(f"{OTHER}: the model or the images, their names, captions or folders are others")
