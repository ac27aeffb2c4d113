"""Features of images: the base U-Net's, an image encoder's, and how much a LoRA raised the denoising error."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..common.errors import UserError
from ..common.interrupts import Progress
from ..common.third_party import quiet
from ..data.folders import Sample
from ..data.images import PLAIN, read_image, training_size
from ..data.latent_cache import Encoded, LatentCache
from ..memory.memory_plan import DTYPES, MemoryPlan, apply_plan
from ..models import base_model, pipeline
from ..models.base_model import Base
from ..models.networks import LoraNetwork
from ..models.noise_schedule import per_sample_error
from ..models.pipeline import add_lora

TIMESTEP = 150  # little noise, so features show the content; 1 to 300 of 1,000 rank nearly alike
POOLED_SIDE = 4  # features are averaged over a grid of 4 x 4: positions count, but not to the pixel
GROWTH_TIMESTEPS = (100, 250, 400, 550, 700, 850)
BATCH_SIZE = 8


@dataclass(frozen=True)
class Images:
    """Images with the base model that features are taken from, as a training would load both."""

    cache: LatentCache  # of private images: the caller removes the folder
    samples: Sequence[Sample]
    plan: MemoryPlan  # the training's: the U-Net must fit where training does
    progress: Progress

    @property
    def base(self) -> Base:
        """Return the base model's files."""
        return self.cache.base

    @property
    def device(self) -> torch.device:
        """Return the device that the models run on."""
        return self.cache.device

    def encoded(self, caption: str) -> Encoded:
        """Encode the images, and one caption for all of them."""
        return self.cache.encode(self.samples, {caption}, progress=self.progress)

    def batches(self, encoded: Encoded) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (positions, latents [n, 4, h, w]) of images of one shape, at most BATCH_SIZE at once."""
        latents = [encoded.latents(sample.path, PLAIN) for sample in self.samples]
        done = 0
        for shape in dict.fromkeys(x.shape for x in latents):
            alike = [i for i, x in enumerate(latents) if x.shape == shape]
            for start in range(0, len(alike), BATCH_SIZE):
                positions = alike[start : start + BATCH_SIZE]
                yield positions, torch.stack([latents[i] for i in positions])
                done += len(positions)
                self.progress("features", done, len(latents))


def same_noise(latents: Tensor) -> Tensor:
    """Return noise of the latents' shape that is the same for every image, so that only the images differ."""
    return torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0)).expand_as(latents)


@torch.no_grad()
def unet_features(images: Images) -> np.ndarray:
    """Return the U-Net's mid-block features under the empty prompt: [n, channels * POOLED_SIDE**2] fp32."""
    encoded = images.encoded("")
    schedule = base_model.load_noise_schedule(images.base)
    unet, dtype = base_model.load_unet(images.base, images.plan.load_dtype), DTYPES[images.plan.precision]
    apply_plan(unet, images.plan, device=images.device)
    text = encoded.text("").to(images.device, dtype)[None]
    found: list[np.ndarray] = [np.empty(0)] * len(images.samples)
    seen: list[Tensor] = []
    hooked: Any = unet.mid_block
    hooked.register_forward_hook(lambda module, arguments, output: seen.append(output))
    for positions, latents in images.batches(encoded):
        t = torch.full((len(positions),), TIMESTEP)
        noisy = schedule.add_noise(latents, same_noise(latents), t)
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            unet(noisy.to(images.device, dtype), t.to(images.device), text.expand(len(positions), -1, -1))
        pooled = F.adaptive_avg_pool2d(seen.pop().float(), POOLED_SIDE).flatten(1).cpu().numpy()
        for i, value in zip(positions, pooled, strict=True):
            found[i] = value
    return np.stack(found)


@torch.no_grad()
def encoder_features(
    paths: Sequence[Path], source: str, *, resolution: int, bucket: bool, device: torch.device, progress: Progress
) -> np.ndarray:
    """Return the features of an image encoder of transformers (CLIP, DINOv2, ViT …): [n, width] fp32.

    Args: source: folder or hub id. resolution, bucket: see images.training_size.
    Raises: UserError if the encoder cannot be loaded.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(source)
            encoder = AutoModel.from_pretrained(source, use_safetensors=True).to(device).eval()
    except Exception as error:  # transformers, hub and safetensors each raise their own
        raise UserError(
            f"--encoder: {source} cannot be loaded as an image encoder ({str(error).splitlines()[0]})"
        ) from None
    encode = getattr(encoder, "get_image_features", encoder)
    found = []
    for done, path in enumerate(paths, 1):
        size = training_size(path, resolution, bucket=bucket)
        pixels = processor(images=Image.fromarray(read_image(path, size)), return_tensors="pt").pixel_values
        out = encode(pixel_values=pixels.to(device))
        if not isinstance(out, Tensor):
            out = out.last_hidden_state.mean(1) if out.get("pooler_output") is None else out.pooler_output
        found.append(out.flatten().float().cpu().numpy())
        progress("features", done, len(paths))
    return np.stack(found)


@torch.no_grad()
def error_growth(images: Images, lora_path: Path, caption: str) -> np.ndarray:
    """Return by how much a LoRA raised each image's denoising error: [n], averaged over GROWTH_TIMESTEPS.

    The unit is the base model's mean error over all images at that timestep.

    Raises: UserError if the LoRA does not fit.
    """
    encoded = images.encoded(caption)
    schedule = base_model.load_noise_schedule(images.base)
    dtype = DTYPES[images.plan.precision]
    pipe = pipeline.load_pipeline(images.base, base_model.load_unet(images.base, dtype))
    add_lora(pipe, lora_path, 1.0)
    unet = pipe.unet.to(images.device)
    text = encoded.text(caption).to(images.device, dtype)[None]
    errors = np.zeros((2, len(images.samples), len(GROWTH_TIMESTEPS)))
    for positions, latents in images.batches(encoded):
        noise = same_noise(latents)
        for k, timestep in enumerate(GROWTH_TIMESTEPS):
            t = torch.full((len(positions),), timestep)
            noisy = schedule.add_noise(latents, noise, t).to(images.device, dtype)
            target = schedule.target(latents, noise, t).to(images.device)
            states: tuple[AbstractContextManager, ...] = (contextlib.nullcontext(), LoraNetwork(unet).disabled())
            for kind, state in enumerate(states):
                with state:
                    predicted = unet(noisy, t.to(images.device), text.expand(len(positions), -1, -1)).sample
                errors[kind, positions, k] = (per_sample_error(predicted, target) / target[0].numel()).cpu().numpy()
    trained, base = errors
    return ((trained - base) / base.mean(0)).mean(1)
