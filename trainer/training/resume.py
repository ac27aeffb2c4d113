"""What a resumed run must share with the run it continues: settings, images, captions, model, number formats."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..config.train_config import FREE_ON_RESUME, TrainConfig, with_absolute_paths
from ..models import base_model

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..data.folders import Folders
    from ..data.latent_cache import Encoded
    from ..memory.memory_plan import MemoryPlan
    from ..models.base_model import Base


OTHER = "--resume: this is not the interrupted run"


def digest(folders: Folders, encoded: Encoded, base: Base) -> str:
    """Hash all that is learned from, in its order, and the model; independent of where the files lie."""
    latents: dict[Path, list[str]] = defaultdict(list)
    for (path, _), key in encoded.latent_keys.items():
        latents[path].append(key)
    parts = [base_model.part_hash(base, "unet")]
    for kind in ("unlabeled", "sensitive", "held_out"):
        for sample in getattr(folders, kind):
            text = encoded.text_keys[sample.caption] if sample.caption else ""
            parts += [kind, *latents[sample.path], text, str(sample.repeats)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def record(config: TrainConfig, data: str, plan: MemoryPlan, device: torch.device) -> dict[str, Any]:
    """Describe the run in its saved states, as JSON values. Args: data: its `digest`."""
    return {
        "settings": with_absolute_paths(config).model_dump(mode="json"),
        "data": data,
        "formats": {"device": device.type, "precision": plan.precision, "weights": plan.weights},
    }


def with_formats(config: TrainConfig, state: dict[str, Any] | None, device: torch.device) -> TrainConfig:
    """Return the settings with the number formats that the run used so far, on the same kind of device.

    Left to "auto" they could come out otherwise, where less memory is free now: the calibration would be another
    model's.
    """
    formats = state["run"]["formats"] if state else {}
    if formats.get("device") != device.type:
        return config
    names = [name for name in ("precision", "weights") if getattr(config, name) == "auto"]
    return config.model_copy(update={name: formats[name] for name in names})


def check_settings(state: dict[str, Any], config: TrainConfig) -> None:
    """Compare the settings of state and config. Raises: UserError with the list of differences."""
    if "run" not in state:
        raise UserError("--resume: an older version saved this state without its settings. Start the training again.")
    before, now = state["run"]["settings"], with_absolute_paths(config).model_dump(mode="json")
    changed = [
        f"--{name.replace('_', '-')} was {before[name]}, is {now[name]}"
        for name in before.keys() & now.keys() - FREE_ON_RESUME
        if before[name] != now[name]
    ]
    if changed:
        raise UserError(f"{OTHER}: {'; '.join(sorted(changed))}")


def check_data(state: dict[str, Any], data: str) -> None:
    """Compare images and model with those of state. Args: data: their `digest`. Raises: UserError if they differ."""
    if state["run"]["data"] != data:
        raise UserError(f"{OTHER}: the model, the images, their captions or their split have changed")
