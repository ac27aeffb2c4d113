"""--keep-prompts: pictures that the base model makes of what must stay, learned along with the unlabeled images.

Unlearning a prompt spills over to its neighbours ("the digit three" to "the digit four"), for which there may be no
image. What the base model shows under them is as good: it is what must not change.
"""

import gc
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from ..common.files import replacing
from ..config.train_config import TrainConfig
from ..data.folders import Sample
from ..memory.memory_plan import MemoryPlan, apply_plan
from ..models import base_model, pipeline
from ..models.base_model import Base
from .generate import generate_pictures

IMAGES = 20  # of each prompt
GUIDANCE = 3.0  # enough to follow the prompt, too little to oversaturate what is then learned
FIRST_SEED = 2**31  # far from those of pictures that people ask for


def preservation_samples(
    config: TrainConfig,
    base: Base,
    folder: Path,
    switches: MemoryPlan,
    *,
    device: torch.device,
    check: Callable[[], None],
) -> list[Sample]:
    """Make what is not in folder yet, with the memory switches of the training.

    Returns: IMAGES samples of each prompt, under that prompt.
    """
    wanted = {
        Sample(folder / f"{i:02d}-{j:02d}.png", prompt): FIRST_SEED + i * IMAGES + j
        for i, prompt in enumerate(prompts(config.keep_prompts))
        for j in range(IMAGES)
    }
    missing = [sample for sample in wanted if not sample.path.exists()]
    if missing:
        unet = base_model.load_unet(base, switches.load_dtype)
        apply_plan(unet, switches, device=device)
        pipe = pipeline.load_pipeline(base, unet)
        for sample in missing:  # one by one, each saved: what a run has, its resume does not make again
            (image,) = generate_pictures(
                pipe,
                sample.caption,
                seeds=[wanted[sample]],
                resolution=config.resolution,
                steps=config.sample_steps,
                guidance=GUIDANCE,
                clip_skip=config.clip_skip,
                check=check,
            )
            with replacing(sample.path) as temporary:
                Image.fromarray(image).save(temporary)
        del pipe, unet
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return list(wanted)


def prompts(text: str | None) -> list[str]:
    """The prompts of --keep-prompts."""
    return [prompt.strip() for prompt in (text or "").split("|") if prompt.strip()]
