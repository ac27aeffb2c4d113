"""Makes pictures as files, with a LoRA at any strength. Files that exist already are not made again."""

import gc
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
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


class ImageGenerator:
    """A model in memory that makes pictures as files; `close` frees the memory."""

    def __init__(self, base: Base, lora: Path | None, settings: PictureSettings, device: str, precision: str) -> None:
        """Load the model, and the LoRA if one is given. Raises: UserError if the LoRA does not fit the model."""
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
            **asdict(settings),
        }

    def set_strength(self, strength: float) -> None:
        """Set the LoRA's strength; 0 gives the base model itself. Does nothing without a LoRA."""
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
        """Make one picture for each seed as folder/SEED.png. Deletes pictures of other settings in that folder.

        Args: progress: called before each sampler step with (the folder's name, pictures done, of); may raise Stopped.
        Returns: the files, in the order of the seeds.
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
            report = partial(progress, folder.name, len(paths) - len(missing) + start, len(paths))
            images = generate_pictures(self.pipe, prompt, chunk, self.settings, check=report)
            save_images(images, folder, chunk)
        progress(folder.name, len(paths), len(paths))
        return list(paths.values())

    def close(self) -> None:
        """Free the model's memory. The generator cannot be used afterwards."""
        del self.pipe
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
