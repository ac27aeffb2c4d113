"""How easily what was unlearned comes back: a short relearning, and a word learned anew (textual inversion).

Both are tried on the base model too: what an attack does there says how strong the attack is.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from . import dataset, model, train
from .before_after import maker
from .config import TrainConfig
from .console import Progress
from .dataset import PLAIN
from .diffusion import add_noise, per_sample_error, target
from .encode import encode, text_states
from .model import Base
from .ranks import ONE
from .run_dir import RunDir
from .sample import save_images
from .studio import Studio

LOOKS = 5  # pictures are made this often during a relearning
PLACEHOLDER = "*"
LOSS_SCALE = 2.0**10  # or fp16 would lose the gradient, which is about 1e-5 where the U-Net ends


def relearn(
    base: Base,
    lora: Path | None,
    sensitive: Path,
    folder: Path,
    *,
    prompt: str,
    config: TrainConfig,
    seeds: Sequence[int],
    progress: Progress,
) -> list[tuple[int, list[Path]]]:
    """Train plainly on the sensitive images, from the LoRA or from the base model, and look five times.

    Args: config: settings of the attack: steps, lr, resolution, sampler. folder: for the run and the pictures.
    Returns: (steps, pictures) at each look.
    """
    shutil.rmtree(folder, ignore_errors=True)
    every = max(1, config.steps // LOOKS)
    changes: dict[str, Any] = {
        "objective": "unsupervised",
        "unlabeled": sensitive,
        "prompt": prompt,
        "init_lora": lora,
        "sample_every": every,
        "output_dir": folder,
    }
    if lora:
        changes |= {"rank": lora_rank(lora), "alpha": None}
    config = TrainConfig(**{**config.model_dump(), **changes})
    folders = dataset.scan(sensitive, None, prompt=prompt, sensitive_prompt=None, skip_bad_images=True, seed=0)
    # what is looked for must come back under the prompt that is measured, whatever captions lie beside the images
    folders = replace(folders, unlabeled=[replace(sample, caption=prompt) for sample in folders.unlabeled])
    looks: list[tuple[int, list[Path]]] = []

    def look(so_far: train.Trained, step: int) -> None:
        images = maker(config, so_far, check=lambda: progress("relearn", step, config.steps))(prompt, list(seeds))
        looks.append((step, save_images(images, folder / f"step{step:05d}", seeds)))

    def emit(event: str, **fields: Any) -> None:
        if event == "step":
            progress("relearn", fields["step"], config.steps)

    with _no_failed_looks(look) as safe_look:
        trained = train.run(
            config,
            base,
            folders,
            RunDir(folder, "run"),
            is_resume=False,
            emit=emit,
            check=lambda: None,
            picture=safe_look,
        )
        safe_look(trained, config.steps)
    return looks


@contextlib.contextmanager
def _no_failed_looks(look: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """train.run takes a failed picture lightly; a measurement must not. Raises what the first failed look raised."""
    failed: list[BaseException] = []

    def safe(*arguments: Any) -> None:
        try:
            look(*arguments)
        except BaseException as error:
            failed.append(error)
            raise

    yield safe
    if failed:
        raise failed[0]


def lora_rank(lora: Path) -> int:
    """The rank of a LoRA file's first module."""
    with safe_open(lora, "pt") as file:
        name = next(key for key in file.keys() if key.endswith("lora_down.weight"))  # noqa: SIM118
        return file.get_slice(name).get_shape()[0]


def invert(
    studio: Studio,
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
    samples = dataset.scan(sensitive, None, prompt="", sensitive_prompt=None, skip_bad_images=True, seed=0).unlabeled
    latents = _latents(studio, samples, folder / "cache", progress)
    signal, prediction_type = model.load_signal(studio.base)
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


def _latents(studio: Studio, samples: list[dataset.Sample], cache: Path, progress: Progress) -> Tensor:
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
