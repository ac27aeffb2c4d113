"""A model that makes pictures into files, with its LoRA at any strength: what is there already is not made again."""

import gc
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..common.files import sha256, write_text
from ..common.interrupts import Progress
from ..data.images import save_images
from ..memory import devices
from ..memory.memory_plan import DTYPES
from ..models import base_model, pipeline
from ..models.base_model import Base
from ..models.pipeline import add_lora
from .generate import PIXELS_AT_ONCE, PictureSettings, generate_pictures

RECIPE = ("resolution", "steps", "guidance", "clip_skip")  # settings that pictures on disk are known by


class ImageGenerator:
    """Owns a model in memory; `close` frees it before another one loads."""

    def __init__(self, base: Base, lora: Path | None, settings: PictureSettings, device: str, precision: str) -> None:
        """Raises: UserError if the LoRA does not fit."""
        self.base, self.settings = base, settings
        self.device = devices.choose_device(device)
        dtype = DTYPES[devices.choose_precision(precision, self.device)]
        self.pipe: Any = pipeline.load_pipeline(base, base_model.load_unet(base, dtype))
        self.has_lora = lora is not None
        if lora:
            add_lora(self.pipe, lora, 1.0)
        self.pipe.unet.to(self.device)
        self._recipe = {
            "unet": base_model.part_hash(base, "unet"),
            "vae": base_model.part_hash(base, "vae"),
            "lora": sha256(lora) if lora else None,
            **{name: getattr(settings, name) for name in RECIPE},
        }

    def set_strength(self, strength: float) -> None:
        """Of the LoRA; 0 is the base model itself."""
        if not self.has_lora:
            return
        if strength == 0:
            self.pipe.disable_lora()
        else:
            self.pipe.enable_lora()
            self.pipe.set_adapters(pipeline.lora_names(self.pipe), strength)

    def make(
        self, folder: Path, prompt: str, seeds: Sequence[int], *, strength: float, progress: Progress
    ) -> list[Path]:
        """Pictures as folder/SEED.png. Those of another recipe in the same folder give way.

        Args: progress: called before each sampler step; may raise.
        """
        recipe = json.dumps({**self._recipe, "prompt": prompt, "strength": strength if self.has_lora else 0.0})
        note = folder / "recipe.json"
        if not note.exists() or note.read_text(encoding="utf-8") != recipe:
            shutil.rmtree(folder, ignore_errors=True)
            write_text(note, recipe)
        paths = {seed: folder / f"{seed:06d}.png" for seed in seeds}
        missing = [seed for seed, path in paths.items() if not path.exists()]
        at_once = max(1, PIXELS_AT_ONCE // self.settings.resolution**2)
        self.set_strength(strength)
        for start in range(0, len(missing), at_once):
            chunk = missing[start : start + at_once]
            tell = partial(progress, folder.name, len(paths) - len(missing) + start, len(paths))
            images = generate_pictures(self.pipe, prompt, chunk, self.settings, check=tell)
            save_images(images, folder, chunk)
        progress(folder.name, len(paths), len(paths))
        return list(paths.values())

    def close(self) -> None:
        del self.pipe
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
