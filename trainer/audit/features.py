"""What models see in images: the base U-Net inside, an image encoder, and a LoRA in how its errors changed."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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

TIMESTEP = 150  # little noise: the content decides. Between 1 and 300 of 1,000 it hardly matters
POOLED = 4  # features are averaged to 4 x 4 places: where something is counts, but not to the pixel
GROWTH_TIMESTEPS = (100, 250, 400, 550, 700, 850)
AT_ONCE = 8


@dataclass(frozen=True)
class Images:
    """Images as the base model sees them in training, and where it runs."""

    cache: LatentCache  # its folder is private: latents are pictures
    samples: Sequence[Sample]
    plan: MemoryPlan  # how the U-Net is held: it must fit where training does
    progress: Progress

    @property
    def base(self) -> Base:
        return self.cache.base

    @property
    def device(self) -> torch.device:
        return self.cache.device

    def encoded(self, caption: str) -> Encoded:
        return self.cache.encode(self.samples, {caption}, progress=self.progress)

    def alike(self, encoded: Encoded) -> Iterator[tuple[list[int], Tensor]]:
        """Positions and latents [n, 4, h, w] of images of one shape, a few at once."""
        latents = [encoded.latents(sample.path, PLAIN) for sample in self.samples]
        done = 0
        for shape in dict.fromkeys(x.shape for x in latents):
            places = [i for i, x in enumerate(latents) if x.shape == shape]
            for start in range(0, len(places), AT_ONCE):
                chunk = places[start : start + AT_ONCE]
                yield chunk, torch.stack([latents[i] for i in chunk])
                done += len(chunk)
                self.progress("features", done, len(latents))


def same_noise(latents: Tensor) -> Tensor:
    """The same for every image: what differs between two is then the images."""
    return torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0)).expand_as(latents)


@torch.no_grad()
def unet_features(images: Images) -> np.ndarray:
    """Mid-block features of each image under the empty prompt. Returns: [n, channels * 16] fp32."""
    encoded = images.encoded("")
    schedule = base_model.load_noise_schedule(images.base)
    unet, dtype = base_model.load_unet(images.base, images.plan.load_dtype), DTYPES[images.plan.precision]
    apply_plan(unet, images.plan, device=images.device)
    text = encoded.text("").to(images.device, dtype)[None]
    found: list[np.ndarray] = [np.empty(0)] * len(images.samples)
    seen: list[Tensor] = []
    unet.mid_block.register_forward_hook(lambda module, arguments, output: seen.append(output))
    for chunk, latents in images.alike(encoded):
        t = torch.full((len(chunk),), TIMESTEP)
        noisy = schedule.add_noise(latents, same_noise(latents), t)
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            unet(noisy.to(images.device, dtype), t.to(images.device), text.expand(len(chunk), -1, -1))
        pooled = F.adaptive_avg_pool2d(seen.pop().float(), POOLED).flatten(1).cpu().numpy()
        for i, value in zip(chunk, pooled, strict=True):
            found[i] = value
    return np.stack(found)


@torch.no_grad()
def encoder_features(
    paths: Sequence[Path], source: str, *, resolution: int, bucket: bool, device: torch.device, progress: Progress
) -> np.ndarray:
    """What a transformers image encoder (CLIP, DINOv2, ViT …) makes of each image.

    Args: source: folder, or hub id. resolution, bucket: see dataset.training_size.
    Returns: [n, width] fp32. Raises: UserError if there is no such encoder.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(source)
            encoder = AutoModel.from_pretrained(source, use_safetensors=True).to(device).eval()
    except Exception as error:  # transformers, hub and safetensors each raise their own
        raise UserError(f"--encoder: {source} is no image encoder here ({str(error).splitlines()[0]})") from None
    look = getattr(encoder, "get_image_features", encoder)
    found = []
    for done, path in enumerate(paths, 1):
        size = training_size(path, resolution, bucket=bucket)
        pixels = processor(images=Image.fromarray(read_image(path, size)), return_tensors="pt").pixel_values
        out = look(pixel_values=pixels.to(device))
        if not isinstance(out, Tensor):
            out = out.last_hidden_state.mean(1) if out.get("pooler_output") is None else out.pooler_output
        found.append(out.flatten().float().cpu().numpy())
        progress("features", done, len(paths))
    return np.stack(found)


@torch.no_grad()
def error_growth(images: Images, lora_path: Path, caption: str) -> np.ndarray:
    """By how much a LoRA raised the error of each image, in the mean error of all images at that timestep. [n]."""
    encoded = images.encoded(caption)
    schedule = base_model.load_noise_schedule(images.base)
    dtype = DTYPES[images.plan.precision]
    pipe = pipeline.load_pipeline(images.base, base_model.load_unet(images.base, dtype))
    add_lora(pipe, lora_path, 1.0)
    unet = pipe.unet.to(images.device)
    text = encoded.text(caption).to(images.device, dtype)[None]
    errors = np.zeros((2, len(images.samples), len(GROWTH_TIMESTEPS)))
    for chunk, latents in images.alike(encoded):
        noise = same_noise(latents)
        for k, timestep in enumerate(GROWTH_TIMESTEPS):
            t = torch.full((len(chunk),), timestep)
            noisy = schedule.add_noise(latents, noise, t).to(images.device, dtype)
            wanted = schedule.target(latents, noise, t).to(images.device)
            for kind, state in enumerate((contextlib.nullcontext(), LoraNetwork(unet).disabled())):
                with state:
                    guess = unet(noisy, t.to(images.device), text.expand(len(chunk), -1, -1)).sample
                errors[kind, chunk, k] = (per_sample_error(guess, wanted) / wanted[0].numel()).cpu().numpy()
    trained, base = errors
    return ((trained - base) / base.mean(0)).mean(1)
