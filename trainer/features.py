"""What the base model sees in images: the innermost features of its U-Net under the empty prompt."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from . import model
from .dataset import PLAIN, Sample
from .diffusion import add_noise
from .encode import Progress, encode
from .model import Base
from .ranks import ONE

TIMESTEP = 150  # little noise: the content decides. Between 1 and 300 of 1,000 it hardly matters
POOLED = 4  # features are averaged to 4 x 4 places: where something is counts, but not to the pixel
AT_ONCE = 8


@torch.no_grad()
def features(
    base: Base,
    samples: Sequence[Sample],
    *,
    resolution: int,
    bucket: bool,
    cache: Path,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> np.ndarray:
    """Mid-block features of each image, every one under the same noise.

    Args: cache: folder for latents, which are private. dtype: of the U-Net.
    Returns: [n, channels * 16] fp32.
    """
    shared = {"resolution": resolution, "bucket": bucket, "views": [PLAIN], "folder": cache, "clip_skip": 1}
    encoded = encode(samples, {""}, base=base, device=device, ranks=ONE, progress=progress, **shared)
    signal, _ = model.load_signal(base)
    unet = model.load_unet(base, dtype).to(device)
    text = encoded.text("").to(device, dtype)[None]
    found: list[np.ndarray] = [np.empty(0)] * len(samples)
    latents = [encoded.latents(sample.path, PLAIN) for sample in samples]
    for shape in dict.fromkeys(x.shape for x in latents):
        alike = [i for i, x in enumerate(latents) if x.shape == shape]
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for start in range(0, len(alike), AT_ONCE):
            progress("features", start, len(alike))
            chunk = alike[start : start + AT_ONCE]
            t = torch.full((len(chunk),), TIMESTEP)
            noisy = add_noise(torch.stack([latents[i] for i in chunk]), noise.expand(len(chunk), *shape), t, signal)
            mid = _mid_block(unet, noisy.to(device, dtype), t.to(device), text.expand(len(chunk), -1, -1))
            pooled = F.adaptive_avg_pool2d(mid.float(), POOLED).flatten(1).cpu().numpy()
            for i, value in zip(chunk, pooled, strict=True):
                found[i] = value
        progress("features", len(alike), len(alike))
    return np.stack(found)


def _mid_block(unet: nn.Module, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """[n, channels, h, w] that leave the innermost block."""
    seen = []
    handle = unet.mid_block.register_forward_hook(lambda module, arguments, output: seen.append(output))
    try:
        unet(noisy, t, text)
    finally:
        handle.remove()
    return seen[0]
