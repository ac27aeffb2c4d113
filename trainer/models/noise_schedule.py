"""The noise schedule: its settings in diffusers' words, forward diffusion, and the denoising error of each sample.

Noise and timesteps are arguments. torch is imported where it is needed: a wrong --base is reported within a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import single_file

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}  # our word -> diffusers'
PREDICTION_TYPES = ("epsilon", "v_prediction")


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


def alphas_cumprod(beta_start: float, beta_end: float, timesteps: int, schedule: str = "scaled_linear") -> Tensor:
    """Return the share of signal that is left at each timestep.

    Args: schedule: "scaled_linear", Stable Diffusion's (betas linear in their root), or "linear", that of DDPM.
    Returns: [timesteps] fp32, falling from nearly 1 to nearly 0.
    Source: Rombach et al. 2022; Ho et al. 2020; equals diffusers' DDPMScheduler with that beta_schedule.
    """
    import torch

    power = {"scaled_linear": 2, "linear": 1}[schedule]
    betas = torch.linspace(beta_start ** (1 / power), beta_end ** (1 / power), timesteps, dtype=torch.float32) ** power
    return torch.cumprod(1 - betas, dim=0)


@dataclass(frozen=True)
class NoiseSchedule:
    """How a model was trained to see noise, and what it predicts."""

    alphas_cumprod: Tensor  # [timesteps] fp32
    prediction_type: str = "epsilon"  # one of PREDICTION_TYPES

    def __post_init__(self) -> None:
        """Raises: ValueError for another prediction type than PREDICTION_TYPES."""
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction type {self.prediction_type!r}: only {' and '.join(PREDICTION_TYPES)} are known"
            )

    @property
    def timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return sqrt(a_t) * latents + sqrt(1 - a_t) * noise.

        Args:
            latents, noise: [n, ...] of the same shape.
            t: [n] int64 timesteps.
        Returns: [n, ...].
        """
        a = self._at(t, latents)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what the U-Net should predict: the noise, or the velocity sqrt(a_t) * noise - sqrt(1 - a_t) * latents.

        Args: as add_noise. Returns: [n, ...].
        Source: Ho et al. 2020 (epsilon); Salimans and Ho 2022 (v).
        """
        if self.prediction_type == "epsilon":
            return noise
        a = self._at(t, latents)
        return a.sqrt() * noise - (1 - a).sqrt() * latents

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio a_t / (1 - a_t). Args: t: [n] int64. Returns: [n] fp32, on t's device."""
        a = self.alphas_cumprod.to(t.device)[t]
        return (a / (1 - a)).clamp(min=1e-8)  # zero terminal SNR: weights divide by it

    def _at(self, t: Tensor, like: Tensor) -> Tensor:
        """Return alphas_cumprod at t, shaped to be multiplied with like."""
        a = self.alphas_cumprod[t.to(self.alphas_cumprod.device)]
        return a.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))


def per_sample_error(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of each sample, summed over its elements, in fp32 whatever came in.

    Args: predicted, wanted: [n, ...].
    Returns: [n] fp32; unlike the usual mean, it grows with the resolution: callers divide by their temperature.
    """
    return (predicted.float() - wanted.float()).square().flatten(1).sum(1)
