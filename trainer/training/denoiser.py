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
class Inputs:
    """Samples of one shape, noised, as the U-Net is shown them: on the host, pinned where a CUDA device computes."""

    noisy: Tensor  # [n, channels, height, width], like text in the dtype of the arithmetic
    text: Tensor
    target: Tensor  # [n, channels, height, width] fp32, what the U-Net should predict
    t: Tensor  # [n] int64

    def part(self, places: slice) -> "Inputs":
        return Inputs(self.noisy[places], self.text[places], self.target[places], self.t[places])


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
        groups: dict[torch.Size, list[int]] = {}
        for i, draw in enumerate(draws):  # images of one shape go through the U-Net together
            groups.setdefault(self.shape_of(draw), []).append(i)
        found = []
        for alike in groups.values():
            inputs = self.inputs([draws[i] for i in alike], step, None if t is None else t[alike])
            found.append(self.errors_of(inputs))
        back = torch.tensor([i for alike in groups.values() for i in alike], device=self.device).argsort()
        errors, times, elements = (torch.cat(values)[back] for values in zip(*found, strict=True))
        return errors, times, elements

    def shape_of(self, draw: TrainingSample) -> torch.Size:
        """Return the shape of a sample's latents."""
        return self.encoded.latents(draw.sample.path, draw.view).shape

    def inputs(self, draws: Sequence[TrainingSample], step: int, t: Tensor | None = None) -> Inputs:
        """Prepare samples of one shape, a pure function of seed, step, and positions. Args: as `errors`."""
        latents = torch.stack([self.encoded.latents(d.sample.path, d.view) for d in draws])
        shape, timesteps = tuple(latents.shape[1:]), self.schedule.timesteps
        random = [noise_and_t(self.seed, step, d.position, shape, timesteps, offset=self.noise_offset) for d in draws]
        t = torch.tensor([r[1] for r in random]) if t is None else t
        noise = torch.from_numpy(np.stack([r[0] for r in random]))
        text = torch.stack([self.encoded.text(d.caption) for d in draws])
        noisy, target = self.schedule.add_noise(latents, noise, t), self.schedule.target(latents, noise, t)
        return Inputs(*(self.pinned(x) for x in (noisy.to(self.dtype), text.to(self.dtype), target, t)))

    def pinned(self, value: Tensor) -> Tensor:
        """Return a host tensor from which the device copies without keeping the host waiting, where it can (CUDA)."""
        return value.pin_memory() if self.device.type == "cuda" else value

    def on_device(self, value: Tensor) -> Tensor:
        """Copy a `pinned` tensor to the device."""
        return value.to(self.device, non_blocking=self.device.type == "cuda")

    def errors_of(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `errors` does, of prepared samples."""
        self.before()
        shown = inputs.noisy, inputs.text, inputs.target, inputs.t
        noisy, text, target, t = (self.on_device(x) for x in shown)
        with self.autocast():
            found = self.unet(noisy, t, text).sample
        return per_sample_error(found, target), t, torch.full_like(t, target[0].numel())


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
    denoiser: Denoiser, scale: LossScale, samples: Sequence[Sample], caption: str | None, *, n: int, micro_batch: int
) -> list[float]:
    """Measure n losses with fixed noise and timesteps: comparable between calls.

    Args: samples: walked in order. caption: for all of them; None: each has its own.
    """
    chosen = [samples[i % len(samples)] for i in range(n)]
    draws = [TrainingSample(i, s, s.own_caption if caption is None else caption) for i, s in enumerate(chosen)]
    t = torch.arange(n) * denoiser.schedule.timesteps // n
    found: list[float] = []
    for i in range(0, n, micro_batch):
        part = slice(i, i + micro_batch)
        found += scale.losses(*denoiser.errors(draws[part], PROBE_STEP, t[part])).tolist()
    return found


def normal_growth(before: Sequence[float], now: Sequence[float], prior: float) -> float:
    """Return by what factor the loss on normal images has grown, which nobody has labelled.

    It is that of the unlabeled samples without the share `prior` whose loss grew most: so much of them is sensitive.

    Args: before, now: [n] losses of the same samples.
    """
    growth = np.array(now) / np.array(before)
    kept = growth.argsort()[: max(1, round((1 - prior) * len(growth)))]
    return float(np.array(now)[kept].sum() / np.array(before)[kept].sum())
