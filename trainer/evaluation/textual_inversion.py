"""The second attack: learn a word that brings the sensitive images back (textual inversion)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.distributed import ONE
from ..data.folders import Sample, scan
from ..data.images import PLAIN
from ..data.latent_cache import encode
from ..generation.generator import ImageGenerator
from ..models import base_model
from ..models.base_model import text_states
from ..models.noise_schedule import add_noise, per_sample_error, target
from ..reporting.events import Progress

PLACEHOLDER = "*"
LOSS_SCALE = 2.0**10  # or fp16 would lose the gradient, which is about 1e-5 where the U-Net ends


def invert(
    studio: ImageGenerator,
    sensitive: Path,
    folder: Path,
    *,
    prompt: str,
    strength: float,
    steps: int,
    seeds: Sequence[int],
    progress: Progress,
    lr: float = 0.02,
    batch: int = 8,
) -> list[Path]:
    """Learn one word's embedding from the sensitive images, nothing else, and make pictures with it.

    Args: prompt: the word is put behind it. strength: of the LoRA while learning and making; 0: the base model.
    Returns: the pictures.
    Source: Gal et al. 2022; as an attack on erased models: Pham et al. 2023.
    """
    pipe, device = studio.pipe, studio.device
    studio.set_strength(strength)
    samples = scan(sensitive, None, prompt="", sensitive_prompt=None, skip_bad_images=True, seed=0).unlabeled
    latents = _latents(studio, samples, folder / "cache", progress)
    signal, prediction_type = base_model.load_alphas_cumprod(studio.base)
    chance = torch.Generator().manual_seed(0)
    text = f"{prompt} {PLACEHOLDER}"
    with _learnable_word(pipe) as word:
        optimizer = torch.optim.AdamW([word], lr=lr, weight_decay=0)
        for step in range(steps):
            progress("invert", step, steps)
            chosen = latents[torch.randint(len(latents), (batch,), generator=chance)]
            noise = torch.randn(chosen.shape, generator=chance)
            t = torch.randint(len(signal), (batch,), generator=chance)
            noisy = add_noise(chosen, noise, t, signal).to(device, pipe.unet.dtype)
            states = text_states(pipe.tokenizer, pipe.text_encoder, [text], studio.settings.clip_skip)
            states = states.to(device, pipe.unet.dtype).expand(batch, -1, -1)
            with torch.autocast(device.type, dtype=pipe.unet.dtype, enabled=pipe.unet.dtype != torch.float32):
                guess = pipe.unet(noisy, t.to(device), states).sample
            wanted = target(chosen, noise, t, signal, prediction_type).to(device)
            loss = per_sample_error(guess, wanted).mean() / wanted[0].numel()
            (LOSS_SCALE * loss).backward()
            word.grad /= LOSS_SCALE
            optimizer.step()
            optimizer.zero_grad()
        pictures = folder / "pictures"
        shutil.rmtree(pictures, ignore_errors=True)  # an embedding is not part of a picture's recipe
        return studio.make(pictures, text, seeds, strength=strength, progress=progress)


def _latents(studio: ImageGenerator, samples: list[Sample], cache: Path, progress: Progress) -> Tensor:
    """[n, 4, h, w] squares of the sensitive images."""
    encoded = encode(
        samples,
        set(),
        base=studio.base,
        resolution=studio.settings.resolution,
        bucket=False,
        views=[PLAIN],
        folder=cache,
        clip_skip=1,
        device=studio.device,
        ranks=ONE,
        progress=progress,
    )
    found = torch.stack([encoded.latents(sample.path, PLAIN) for sample in samples])
    shutil.rmtree(cache, ignore_errors=True)
    return found


@contextlib.contextmanager
def _learnable_word(pipe: Any) -> Iterator[Tensor]:
    """The embedding [width] that stands in for the placeholder, as long as this lasts; starts as that of "a"."""
    table = pipe.text_encoder.get_input_embeddings()
    place, start = (pipe.tokenizer(word, add_special_tokens=False).input_ids[0] for word in (PLACEHOLDER, "a"))
    word = table.weight[start].detach().clone().requires_grad_(True)

    def put(module: Any, arguments: tuple, output: Tensor) -> Tensor:
        return torch.where((arguments[0] == place)[..., None], word.to(output.dtype), output)

    handle = table.register_forward_hook(put)
    try:
        yield word
    finally:
        handle.remove()
