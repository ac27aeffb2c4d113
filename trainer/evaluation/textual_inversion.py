"""The second attack: learn a word that brings the sensitive images back (textual inversion)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.interrupts import Progress
from ..data.folders import Reading, Sample, scan
from ..data.images import PLAIN
from ..data.latent_cache import LatentCache
from ..generation.generator import ImageGenerator
from ..models import base_model
from ..models.noise_schedule import per_sample_error
from ..models.text_states import text_states
from .attack_settings import AttackSettings

PLACEHOLDER = "*"
LR, BATCH = 0.02, 8
LOSS_SCALE = 2.0**10  # or fp16 would lose the gradient, which is about 1e-5 where the U-Net ends


def invert(
    generator: ImageGenerator, attack: AttackSettings, folder: Path, *, strength: float, progress: Progress
) -> list[Path]:
    """Learn one word's embedding from the sensitive images, nothing else, and make pictures with it behind the prompt.

    Args: strength: of the LoRA while learning and making; 0: the base model.
    Returns: the pictures.
    Source: Gal et al. 2022; as an attack on erased models: Pham et al. 2023.
    """
    pipe, device = generator.pipe, generator.device
    generator.set_strength(strength)
    samples = scan(attack.sensitive, None, Reading(prompt="", skip_bad_images=True), seed=0).unlabeled
    latents = _latents(generator, samples, folder / "cache", progress)
    schedule = base_model.load_noise_schedule(generator.base)
    chance = torch.Generator().manual_seed(0)
    text = f"{attack.prompt} {PLACEHOLDER}"
    with _learnable_word(pipe) as word:
        optimizer = torch.optim.AdamW([word], lr=LR, weight_decay=0)
        for step in range(attack.invert_steps):
            progress("invert", step, attack.invert_steps)
            chosen = latents[torch.randint(len(latents), (BATCH,), generator=chance)]
            noise = torch.randn(chosen.shape, generator=chance)
            t = torch.randint(schedule.timesteps, (BATCH,), generator=chance)
            noisy = schedule.add_noise(chosen, noise, t).to(device, pipe.unet.dtype)
            how = {"clip_skip": generator.settings.clip_skip, "max_tokens": generator.settings.max_tokens}
            states = text_states(pipe.tokenizer, pipe.text_encoder, [text], **how)
            states = states.to(device, pipe.unet.dtype).expand(BATCH, -1, -1)
            with torch.autocast(device.type, dtype=pipe.unet.dtype, enabled=pipe.unet.dtype != torch.float32):
                guess = pipe.unet(noisy, t.to(device), states).sample
            target = schedule.target(chosen, noise, t).to(device)
            loss = per_sample_error(guess, target).mean() / target[0].numel()
            (LOSS_SCALE * loss).backward()
            assert word.grad is not None, "backward fills it"
            word.grad /= LOSS_SCALE
            optimizer.step()
            optimizer.zero_grad()
        pictures = folder / "pictures"
        shutil.rmtree(pictures, ignore_errors=True)  # an embedding is not part of a picture's recipe
        return generator.make(pictures, text, attack.seeds, strength=strength, progress=progress)


def _latents(generator: ImageGenerator, samples: list[Sample], folder: Path, progress: Progress) -> Tensor:
    """Encode the sensitive images as squares. Returns: [n, 4, h, w]."""
    cache = LatentCache(generator.base, folder, generator.settings.resolution, bucket=False, device=generator.device)
    encoded = cache.encode(samples, set(), progress=progress)
    found = torch.stack([encoded.latents(sample.path, PLAIN) for sample in samples])
    shutil.rmtree(folder, ignore_errors=True)
    return found


@contextlib.contextmanager
def _learnable_word(pipe: Any) -> Iterator[Tensor]:
    """Lend a trainable embedding [width] in place of the placeholder's; it starts as that of "a"."""
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
