"""The noise schedule's settings, in diffusers' words: Stable Diffusion's own, what a file declares, what is refused."""

from pathlib import Path
from typing import Any

from . import single_file

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # our word -> diffusers'


def schedule_problem(noise: dict[str, Any]) -> str | None:
    """Say what of a scheduler's settings is unknown here, or None."""
    if (found := noise.get("prediction_type", "epsilon")) not in PREDICTIONS.values():
        return f"prediction_type is {found!r}"
    if (found := noise.get("beta_schedule", "linear")) not in BETA_SCHEDULES:
        return f"beta_schedule is {found!r}"
    betas, steps = noise.get("trained_betas"), noise.get("num_train_timesteps", 1000)
    if betas is not None and not (isinstance(betas, list) and len(betas) == steps and all(_is_share(b) for b in betas)):
        return f"trained_betas are not {steps} numbers from 0 to 1"
    wrong = [name for name in ("beta_start", "beta_end") if not _is_share(noise.get(name, 0.01))]
    if wrong or not isinstance(steps, int) or steps < 1:
        return f"{wrong[0] if wrong else 'num_train_timesteps'} is no such number"
    return None


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def declared_by(path: Path) -> dict[str, Any]:
    """Read what a file declares of its schedule: by empty tensors named v_pred and ztsnr, or by its metadata."""
    is_readable = path.suffix.lower() == ".safetensors"  # a .ckpt is opened only to be loaded
    shapes, metadata = single_file.header(path) if is_readable else ({}, {})
    is_v = "v_pred" in shapes or metadata.get("modelspec.prediction_type", "").startswith("v")
    flags = (
        metadata.get(name, "").lower() for name in ("ss_zero_terminal_snr", "modelspec.zero_terminal_snr", "ztsnr")
    )
    is_zero = "ztsnr" in shapes or any(flag in ("true", "1") for flag in flags)
    found: dict[str, Any] = {"prediction_type": PREDICTIONS["v" if is_v else "epsilon"]}
    return {**found, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if is_zero else found
