"""The denoising errors of chosen samples under the U-Net, and the base model's own error by timestep."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..data.folders import Sample
from ..data.images import View
from ..data.sampler import TrainingSample, noise_and_t
from ..models.noise_schedule import NoiseSchedule, per_sample_error
from ..objective.temperature import BINS, LossScale

# Steps no training reaches: their noise belongs to measurements.
CALIBRATION_STEP, PROBE_STEP = 2**40, 2**40 + 1


class ModelInputs(Protocol):
    """What the U-Net is shown, as latent_cache.Encoded has it."""

    def latents(self, path: Path, view: View) -> Tensor:
        """Return an image's latents [channels, height, width] fp32."""

    def text(self, caption: str) -> Tensor:
        """Return a caption's text states."""


@dataclass(frozen=True)
class Denoiser:
    """The U-Net with all it needs to turn samples into errors. `before` is called ahead of each pass and may raise."""

    unet: nn.Module
    dtype: torch.dtype  # of the arithmetic
    encoded: ModelInputs
    schedule: NoiseSchedule
    seed: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager]
    before: Callable[[], None]
    noise_offset: float = 0.0

    def errors(
        self, draws: Sequence[TrainingSample], step: int, t: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the squared errors of samples, differentiable in the LoRA.

        Args:
            step: with each sample's position it decides noise and timestep.
            t: [n] timesteps to use instead.
        Returns: (errors [n] fp32 summed over elements, timesteps [n] int64, elements [n] of each sample).
        """
        latents = [self.encoded.latents(d.sample.path, d.view) for d in draws]
        random = [
            noise_and_t(self.seed, step, d.position, tuple(x.shape), self.schedule.timesteps, offset=self.noise_offset)
            for d, x in zip(draws, latents, strict=True)
        ]
        t = torch.tensor([r[1] for r in random]) if t is None else t
        found: list[Tensor] = [torch.empty(0)] * len(draws)
        for shape in dict.fromkeys(x.shape for x in latents):  # images of one shape go through the U-Net together
            alike = [i for i, x in enumerate(latents) if x.shape == shape]
            clean = torch.stack([latents[i] for i in alike])
            noise = torch.from_numpy(np.stack([random[i][0] for i in alike]))
            errors = self._errors(clean, noise, t[alike], [draws[i].caption for i in alike])
            for i, error in zip(alike, errors, strict=True):
                found[i] = error
        elements = torch.tensor([x.numel() for x in latents], device=self.device)
        return torch.stack(found), t.to(self.device), elements

    def _errors(self, latents: Tensor, noise: Tensor, t: Tensor, captions: Sequence[str]) -> Tensor:
        """Return the [n] errors of samples of one shape."""
        self.before()
        text = torch.stack([self.encoded.text(caption) for caption in captions]).to(self.device)
        noisy = self.schedule.add_noise(latents, noise, t).to(self.device)
        target = self.schedule.target(latents, noise, t).to(self.device)
        with self.autocast():
            found = self.unet(noisy.to(self.dtype), t.to(self.device), text.to(self.dtype)).sample
        return per_sample_error(found, target)


@torch.no_grad()
def calibrate(denoiser: Denoiser, samples: Sequence[Sample], *, samples_per_bin: int, micro_batch: int) -> Tensor:
    """Measure the mean error per latent element of the U-Net as it is (switch the LoRA off first), by timestep bin.

    Args: samples: the unlabeled ones, walked in order.
    Returns: [20] fp32 on the CPU.
    """
    width = denoiser.schedule.timesteps / BINS
    places = np.arange(samples_per_bin) / samples_per_bin  # evenly inside the bin: less noise than drawing
    t = torch.tensor(np.concatenate([(b + places) * width for b in range(BINS)])).long()
    chosen = [samples[i % len(samples)] for i in range(len(t))]
    draws = [TrainingSample(i, sample, sample.own_caption) for i, sample in enumerate(chosen)]
    found = []
    for i in range(0, len(draws), micro_batch):
        part = slice(i, i + micro_batch)
        errors, _, elements = denoiser.errors(draws[part], CALIBRATION_STEP, t[part])
        found.append((errors / elements).cpu())
    return torch.cat(found).view(BINS, samples_per_bin).mean(1)


@torch.no_grad()
def probe(
    denoiser: Denoiser, scale: LossScale, samples: Sequence[Sample], caption: str, *, n: int, micro_batch: int
) -> float:
    """Measure the mean loss of n samples with fixed noise and timesteps: comparable between calls."""
    draws = [TrainingSample(i, samples[i % len(samples)], caption) for i in range(n)]
    timesteps = denoiser.schedule.timesteps
    t = torch.arange(n) * timesteps // n
    total = 0.0
    for i in range(0, n, micro_batch):
        part = slice(i, i + micro_batch)
        total += scale.losses(*denoiser.errors(draws[part], PROBE_STEP, t[part])).sum().item()
    return total / n
