"""Forward diffusion and the denoising error of each sample. Pure functions: noise and timesteps are arguments."""

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction")


def alphas_cumprod(beta_start: float, beta_end: float, timesteps: int, schedule: str = "scaled_linear") -> Tensor:
    """Signal share of each timestep.

    Args: schedule: "scaled_linear", Stable Diffusion's (betas linear in their root), or "linear", that of DDPM.
    Returns: [timesteps] fp32, falling from nearly 1 to nearly 0.
    Source: Rombach et al. 2022; Ho et al. 2020; equals diffusers' DDPMScheduler with that beta_schedule.
    """
    power = {"scaled_linear": 2, "linear": 1}[schedule]
    betas = torch.linspace(beta_start ** (1 / power), beta_end ** (1 / power), timesteps, dtype=torch.float32) ** power
    return torch.cumprod(1 - betas, dim=0)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))


def add_noise(latents: Tensor, noise: Tensor, t: Tensor, signal: Tensor) -> Tensor:
    """sqrt(a_t) * latents + sqrt(1 - a_t) * noise.

    Args:
        latents, noise: [n, ...] of the same shape.
        t: [n] int64 timesteps.
        signal: [timesteps] from alphas_cumprod.
    Returns: [n, ...].
    """
    a = _per_sample(signal[t.to(signal.device)], latents)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(latents: Tensor, noise: Tensor, t: Tensor, signal: Tensor, prediction_type: str) -> Tensor:
    """What the U-Net should predict: the noise, or the velocity sqrt(a_t) * noise - sqrt(1 - a_t) * latents.

    Raises: ValueError for another prediction type than PREDICTION_TYPES.
    Source: Ho et al. 2020 (epsilon); Salimans and Ho 2022 (v).
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        a = _per_sample(signal[t.to(signal.device)], latents)
        return a.sqrt() * noise - (1 - a).sqrt() * latents
    raise ValueError(f"prediction type {prediction_type!r}: only {' and '.join(PREDICTION_TYPES)} are known")


def per_sample_error(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Squared error of each sample, summed over its elements, in fp32 whatever came in.

    Args: predicted, wanted: [n, ...].
    Returns: [n] fp32; unlike the usual mean, it grows with the resolution: callers divide by their temperature.
    """
    return (predicted.float() - wanted.float()).square().flatten(1).sum(1)
