"""Prior preservation images for --keep-prompts: the base model's own pictures, trained on as unlabeled images.

Unlearning a prompt also changes the pictures of similar prompts ("the digit three" changes "the digit four"). Where the
unlabeled folder has no images of those, the base model's own pictures show what must not change.
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
FIRST_SEED = 2**31  # above the seeds that people choose


def preservation_samples(job: TrainingJob, plan: MemoryPlan, context: RunContext) -> list[Sample]:
    """Make the prior preservation images that the run folder lacks, within the memory plan of the training.

    Returns: IMAGES samples for each prompt of --keep-prompts, with that prompt as caption.
    Raises: Stopped.
    """
    folder = context.run_dir.preservation
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
        for sample in missing:  # saved one by one, so that a resumed run makes the rest only
            (image,) = generate_pictures(pipe, sample.caption or "", [seeds[sample]], settings, check=context.check)
            with replacing(sample.path) as temporary:
                Image.fromarray(image).save(temporary)
        del pipe, unet
        gc.collect()
        if context.device.type == "cuda":
            torch.cuda.empty_cache()
    return list(seeds)


def prompts(text: str | None) -> list[str]:
    """Split the text of --keep-prompts at each |. Returns: the prompts, without empty ones."""
    return [prompt.strip() for prompt in (text or "").split("|") if prompt.strip()]
