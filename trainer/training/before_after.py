"""A run's own pictures: before and after with the same seeds, and during training; with rates on the digits."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..builtin import BUILTIN
from ..common.interrupts import Check
from ..config.sample_prompts import SamplePrompt, read_sample_prompts
from ..data.contact_sheet import save_grid
from ..data.job import TrainingJob
from ..generation.generate import PictureSettings, generate_pictures
from ..generation.preservation import prompts
from ..metrics.digit_judge import DigitJudge, Rate
from ..models import base_model, pipeline
from ..reporting.run_context import RunContext
from .learner import TrainedModel

NAMED = 8  # pictures of each prompt that names what is sensitive
MOST_NAMED = 4  # such prompts
AT_STEP = 9  # pictures during training: enough to see, few enough not to hold it up


@dataclass(frozen=True)
class Evaluation:
    prompt: str
    before_grid: Path | None
    after_grid: Path | None
    before: Rate | None
    after: Rate | None
    ceiling: Rate | None  # the judge's rate on real normal images it never saw
    named: tuple["NamedPrompt", ...] = ()


@dataclass(frozen=True)
class NamedPrompt:
    """Pictures of a prompt that names what is sensitive: unlearned elsewhere, it may still come out here."""

    prompt: str
    before: np.ndarray  # [n, h, w, 3] uint8
    after: np.ndarray
    before_rate: float | None  # share of normal pictures; None where nobody judges
    after_rate: float | None


def before_after(trained: TrainedModel, context: RunContext) -> Evaluation:
    """Make the pictures, save a grid of each kind, and measure rates on the built-in digits.

    A failure becomes a warning: what was trained is saved by then.
    """
    try:
        return _before_after(trained, context)
    except Exception as error:
        context.warn(f"what was trained is saved, but no pictures before and after could be made: {error}")
        return Evaluation(trained.job.picture_prompt, None, None, None, None, None)


def _before_after(trained: TrainedModel, context: RunContext) -> Evaluation:
    config, prompt = trained.job.config, trained.job.picture_prompt
    seeds = list(range(max(config.images, config.rate_images)))
    if not seeds:
        return Evaluation(prompt, None, None, None, None, None)
    context.phase("pictures")
    names = name_prompts(trained.job) if config.images else []
    if names:
        context.emit("name_prompts", prompts=names)
    judge = DigitJudge() if config.base == BUILTIN and config.rate_images else None
    grids, rates, named = {}, {}, {}
    for kind in ("before", "after"):
        with _base_unet(trained) if kind == "before" else contextlib.nullcontext(trained.network.unet) as unet:
            make = maker(trained.job, unet, context.check)
            images = make(prompt, seeds)
            named[kind] = [make(name, seeds[: min(NAMED, config.images)]) for name in names]
        if config.images:
            grids[kind] = context.run_dir.samples / f"{kind}.png"
            save_grid(images[: config.images], grids[kind])
            context.emit("sample", kind=kind, path=str(grids[kind]), prompt=prompt)
        if judge:
            rates[kind] = judge.rate(images[: config.rate_images])
    return Evaluation(
        prompt,
        grids.get("before"),
        grids.get("after"),
        rates.get("before"),
        rates.get("after"),
        judge.ceiling() if judge else None,
        tuple(
            _judged(name, before, after, judge)
            for name, before, after in zip(names, named["before"], named["after"], strict=True)
        ),
    )


def _judged(prompt: str, before: np.ndarray, after: np.ndarray, judge: DigitJudge | None) -> NamedPrompt:
    rates = [judge.rate(pictures).share if judge else None for pictures in (before, after)]
    return NamedPrompt(prompt, before, after, *rates)


def name_prompts(job: TrainingJob) -> list[str]:
    """Return the prompts that name what is sensitive.

    They are those of --name-prompts, else the captions that sensitive images alone have. Returns: MOST_NAMED at most.
    """
    if job.config.name_prompts:
        return prompts(job.config.name_prompts)[:MOST_NAMED]
    shared = {sample.caption for sample in job.folders.unlabeled}
    own = [job.config.sensitive_prompt, *(sample.caption for sample in job.folders.sensitive)]
    return [name for name in dict.fromkeys(own) if name and name not in shared][:MOST_NAMED]


@contextlib.contextmanager
def _base_unet(trained: TrainedModel) -> Iterator[nn.Module]:
    """Lend the base U-Net: without its LoRA, or loaded again while a fully trained network waits on the CPU."""
    unet = trained.network.unet
    if trained.job.config.network == "lora":
        with trained.network.disabled():
            yield unet
        return
    dtype = next(unet.parameters()).dtype
    unet.to("cpu")
    yield base_model.load_unet(trained.job.base, dtype).to(trained.device)
    unet.to(trained.device)


def picture_at_step(job: TrainingJob, context: RunContext) -> Callable[[TrainedModel, int], None]:
    """Return what `run` calls for --sample-every: the first few of the pictures that before and after show."""
    seeds = list(range(max(1, min(job.config.images, AT_STEP))))

    def picture(so_far: TrainedModel, step: int) -> None:
        path = context.run_dir.samples / f"step{step:06d}.png"
        make = maker(job, so_far.network.unet, context.check)
        if job.config.sample_prompts:
            asked = read_sample_prompts(job.config.sample_prompts)[0]
            images = np.concatenate([make(one.prompt, [one.seed], **_changes(one)) for one in asked])
        else:
            asked, images = [], make(job.picture_prompt, seeds)
        save_grid(images, path)
        shown = " | ".join(one.prompt for one in asked) or job.picture_prompt
        context.emit("sample", kind="step", step=step, path=str(path), prompt=shown)

    return picture


def _changes(asked: SamplePrompt) -> dict[str, Any]:
    """Return how a picture's settings differ from those of the run's other pictures."""
    found = {"negative": asked.negative, "steps": asked.steps, "guidance": asked.guidance}
    return {name: value for name, value in found.items() if value is not None}


def maker(job: TrainingJob, unet: nn.Module, check: Check = lambda: None) -> Callable[..., np.ndarray]:
    """Return a function (prompt, seeds, **changes) -> pictures [n, h, w, 3] uint8 of unet as it is then.

    Its changes are of PictureSettings' fields, which are else the config's.
    """
    pipe = pipeline.load_pipeline(job.base, unet)
    config = job.config
    settings = PictureSettings(
        config.resolution, config.sample_steps, config.guidance, config.clip_skip, max_tokens=config.max_token_length
    )

    def make(prompt: str, seeds: list[int], **changes: Any) -> np.ndarray:
        return generate_pictures(pipe, prompt, seeds, replace(settings, **changes), check=check)

    return make
