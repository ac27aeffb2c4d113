"""Diffusion in pixel space, from scratch or from a pretrained DDPM: what takes the place of latents and text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor, nn

from ..common.third_party import quiet
from ..data.images import View
from ..models.noise_schedule import NoiseSchedule, alphas_cumprod

TIMESTEPS = 1000
# what --crops means for pixels: the image itself, then moved by one pixel each way
SHIFTS = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
AT_ONCE = 250  # pictures of a digit's size; fewer of larger ones


@dataclass(frozen=True)
class NoiseSettings:
    """A schedule and what the network predicts. The default is that of Ho et al. 2020."""

    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"

    def schedule(self) -> NoiseSchedule:
        alphas = alphas_cumprod(self.beta_start, self.beta_end, TIMESTEPS, self.beta_schedule)
        return NoiseSchedule(alphas, self.prediction_type)


@dataclass(frozen=True)
class Predicted:
    sample: Tensor


class PixelUNet(nn.Module):
    """A UNet2DModel called as Stable Diffusion's U-Net is; it reads no text.

    Args: fold: it works on fold x fold pixels at a time (space to depth), which is as good and faster on digits.
    """

    def __init__(self, unet: UNet2DModel, fold: int = 1) -> None:
        super().__init__()
        self.unet, self.fold = unet, fold

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None) -> Predicted:
        folded = F.pixel_unshuffle(x, self.fold)
        return Predicted(F.pixel_shuffle(self.unet(folded, t).sample, self.fold))


def build(unet: dict[str, Any] | str, fold: int, *, seed: int) -> PixelUNet:
    """Build the U-Net.

    Args: unet: diffusers' config for one from scratch, or where a pretrained one is (folder, hub id).
    """
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = (
            UNet2DModel.from_pretrained(unet, use_safetensors=True) if isinstance(unet, str) else UNet2DModel(**unet)
        )
    return PixelUNet(found, fold)


@dataclass
class Pixels:
    """Images as the U-Net sees them, in the place of latent_cache.Encoded: their pixels, read once, and no text."""

    _kept: dict[Path, Tensor] = field(default_factory=dict)

    def latents(self, path: Path, view: View) -> Tensor:
        """Return an image [channels, height, width] fp32 in -1..1."""
        if path not in self._kept:
            with Image.open(path) as image:
                pixels = np.atleast_3d(np.asarray(image))
            self._kept[path] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        found = self._kept[path].float() / 127.5 - 1
        found = found.flip(-1) if view.flip else found
        down, right = SHIFTS[view.crop]
        padded = F.pad(found, (1, 1, 1, 1), mode="replicate")
        return padded[:, 1 + down : 1 + down + found.shape[1], 1 + right : 1 + right + found.shape[2]]

    def text(self, caption: str) -> Tensor:
        return torch.zeros(1)


@torch.no_grad()
def pictures(
    unet: PixelUNet, noise: NoiseSettings, seeds: Sequence[int], shape: tuple[int, int, int], *, steps: int
) -> np.ndarray:
    """Make one picture for each seed by diffusers' DDIM sampler.

    Args: shape: (channels, height, width). Returns: [n, height, width, channels] uint8.
    """
    scheduler = DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        clip_sample=True,
        set_alpha_to_one=False,
        timestep_spacing="trailing",  # begins at the noisiest step, where pictures begin
        **vars(noise),
    )
    scheduler.set_timesteps(steps)
    device = next(unet.parameters()).device
    made = []
    at_once = max(1, AT_ONCE * 32**2 // (shape[1] * shape[2]))
    for i in range(0, len(seeds), at_once):
        chunk = seeds[i : i + at_once]
        x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in chunk]).to(device)
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t.to(device)).sample, t, x).prev_sample
        made.append((x.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(made)
