"""The scale of the losses: the base model's mean error at each timestep, times the temperature."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BINS = 20
RUNNING = 0.99  # share of its old value that the scale of a model without a base keeps at each step


@dataclass(frozen=True)
class LossScale:
    """Errors -> losses: l = e / tau.

    per-timestep: tau = temperature * base error per element in t's bin * elements, so a normal sample has l of about
    1 / temperature at every timestep and resolution. fixed: tau = temperature. plain: tau = elements, the usual mean.
    """

    mode: str
    temperature: float
    base_error: Tensor | None = None  # [20]
    timesteps: int = 1000

    def to(self, device: torch.device) -> "LossScale":
        return self if self.base_error is None else replace(self, base_error=self.base_error.to(device))

    def losses(self, errors: Tensor, t: Tensor, elements: Tensor) -> Tensor:
        if self.mode == "plain":
            return errors / elements
        if self.mode == "fixed":
            return errors / self.temperature
        assert self.base_error is not None, "per-timestep: calibrate first"
        bins = self.base_error.to(errors.device)[t * BINS // self.timesteps]
        return errors / (self.temperature * bins * elements)

    def after(self, t: Tensor, errors: Tensor) -> "LossScale":
        """Return the scale after one step from scratch, where the model's own error replaces the base model's.

        Args: t, errors: [n] timesteps of one step's unlabeled samples, and their errors per element.
        """
        if self.base_error is None:
            return self
        bins = (t * BINS // self.timesteps).cpu()
        counts = torch.bincount(bins, minlength=BINS)
        sums = torch.zeros(BINS).index_add(0, bins, errors.cpu())
        found = torch.where(counts > 0, sums / counts.clamp(min=1), self.base_error)
        return replace(self, base_error=torch.lerp(found, self.base_error, RUNNING))


def min_snr_weight(snr: Tensor, max_snr: float | None, prediction_type: str) -> Tensor:
    """Return the factor of each sample: min(SNR, max_snr) / SNR, over SNR + 1 for a velocity; 1 without max_snr.

    Timesteps with little noise count less: their errors are easily driven up, and decide little of what is pictured.

    Args: snr: [n] signal-to-noise ratio at each sample's timestep.
    Returns: [n] fp32.
    Source: Hang et al. 2023 (min-SNR).
    """
    if max_snr is None:
        return torch.ones_like(snr)
    return snr.clamp(max=max_snr) / (snr + 1 if prediction_type == "v_prediction" else snr)
