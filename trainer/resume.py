"""What a resumed run must share with the run it continues: settings, images, number formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import FREE_ON_RESUME, TrainConfig
from .errors import UserError

if TYPE_CHECKING:
    import torch

    from .encode import Encoded
    from .switches import Switches


def record(config: TrainConfig, encoded: Encoded, switches: Switches, device: torch.device) -> dict[str, Any]:
    """What a state keeps of its run, as JSON values."""
    return {
        "settings": config.model_dump(mode="json"),
        "images": encoded.digest,
        "formats": {"device": device.type, "precision": switches.precision, "weights": switches.weights},
    }


def with_formats(config: TrainConfig, state: dict[str, Any] | None, device: torch.device) -> TrainConfig:
    """The settings with the number formats that the run has had so far, on that kind of device.

    Left to "auto" they could come out otherwise, where less memory is free now: the calibration would be another
    model's.
    """
    if state is None or state["run"]["formats"]["device"] != device.type:
        return config
    names = [name for name in ("precision", "weights") if getattr(config, name) == "auto"]
    return config.model_copy(update={name: state["run"]["formats"][name] for name in names})


def check(state: dict[str, Any], config: TrainConfig, encoded: Encoded) -> None:
    """Raises: UserError with the list of differences, if this is not the run that state was taken from."""
    before, now = state["run"]["settings"], config.model_dump(mode="json")
    changed = [
        f"--{name.replace('_', '-')} was {before[name]}, is {now[name]}"
        for name in before.keys() & now.keys() - FREE_ON_RESUME
        if before[name] != now[name]
    ]
    if state["run"]["images"] != encoded.digest:
        changed.append("the images, or the model that encodes them, are others")
    if changed:
        raise UserError(f"--resume: not the run that was begun: {'; '.join(sorted(changed))}")
