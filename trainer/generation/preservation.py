"""--keep-prompts: pictures that the base model makes of what must stay, learned along with the unlabeled images.

Unlearning a prompt spills over to its neighbours ("the digit three" to "the digit four"), for which there may be no
image. What the base model shows under them is as good: it is what must not change.
"""

import gc

import torch
from PIL import Image

from ..common.files import replacing
from ..data.folders import Sample
from ..data.job import TrainingJob
from ..memory.memory_plan import MemoryPlan, apply_plan
from ..models import base_model, pipeline
from ..reporting.run_context import RunContext
from .generate import PictureSettings, generate_pictures

IMAGES = 20  # of each prompt
GUIDANCE = 3.0  # enough to follow the prompt, too little to oversaturate what is then learned
FIRST_SEED = 2**31  # far from those of pictures that people ask for


def preservation_samples(job: TrainingJob, plan: MemoryPlan, context: RunContext) -> list[Sample]:
    """Make what the run folder does not hold yet, with the memory plan of the training.

    Returns: IMAGES samples of each prompt, under that prompt.
    """
    folder = context.run_dir.keep
    seeds = {
        Sample(folder / f"{i:02d}-{j:02d}.png", prompt): FIRST_SEED + i * IMAGES + j
        for i, prompt in enumerate(prompts(job.config.keep_prompts))
        for j in range(IMAGES)
    }
    missing = [sample for sample in seeds if not sample.path.exists()]
    if missing:
        unet = base_model.load_unet(job.base, plan.load_dtype)
        apply_plan(unet, plan, device=context.device)
        pipe = pipeline.load_pipeline(job.base, unet)
        config = job.config
        settings = PictureSettings(
            config.resolution, config.sample_steps, GUIDANCE, config.clip_skip, max_tokens=config.max_token_length
        )
        for sample in missing:  # one by one, each saved: what a run has, its resume does not make again
            (image,) = generate_pictures(pipe, sample.caption, [seeds[sample]], settings, check=context.check)
            with replacing(sample.path) as temporary:
                Image.fromarray(image).save(temporary)
        del pipe, unet
        gc.collect()
        if context.device.type == "cuda":
            torch.cuda.empty_cache()
    return list(seeds)


def prompts(text: str | None) -> list[str]:
    """The prompts of --keep-prompts."""
    return [prompt.strip() for prompt in (text or "").split("|") if prompt.strip()]
