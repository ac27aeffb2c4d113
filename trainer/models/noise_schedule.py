"""Forward diffusion and the denoising error of each sample. Pure functions: noise and timesteps are arguments."""

from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction")


def alphas_cumprod(beta_start: float, beta_end: float, timesteps: int, schedule: str = "scaled_linear") -> Tensor:
    """Return the share of signal that is left at each timestep.

    Args: schedule: "scaled_linear", Stable Diffusion's (betas linear in their root), or "linear", that of DDPM.
    Returns: [timesteps] fp32, falling from nearly 1 to nearly 0.
    Source: Rombach et al. 2022; Ho et al. 2020; equals diffusers' DDPMScheduler with that beta_schedule.
    """
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
