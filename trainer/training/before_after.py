"""A run's own pictures: before and after with the same seeds, and during training; counted where there is a judge."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..builtin import BUILTIN
from ..config.train_config import TrainConfig
from ..data.contact_sheet import save_grid
from ..generation.generate import generate_pictures
from ..metrics.digit_judge import DigitJudge, Rate
from ..models import base_model, lora, pipeline
from ..reporting.run_dir import RunDir
from .context import Emit, TrainedModel, picture_prompt

AT_STEP = 9  # pictures during training: enough to see, few enough not to hold it up


@dataclass(frozen=True)
class Evaluation:
    prompt: str
    before_grid: Path | None
    after_grid: Path | None
    before: Rate | None
    after: Rate | None
    ceiling: Rate | None  # the judge's rate on real normal images it never saw


def before_after(
    config: TrainConfig, trained: TrainedModel, run_dir: RunDir, *, emit: Emit, check: Callable[[], None]
) -> Evaluation:
    """Make the pictures, save a grid of each kind, and count if a judge is there (the built-in digits).

    A failure is told, and nothing more: what was trained is saved by then.
    """
    try:
        return _before_after(config, trained, run_dir, emit=emit, check=check)
    except Exception as error:
        text = f"what was trained is saved, but no pictures before and after could be made: {error}"
        emit("warning", message=text)
        return Evaluation(picture_prompt(config, trained.folders), None, None, None, None, None)


def _before_after(
    config: TrainConfig, trained: TrainedModel, run_dir: RunDir, *, emit: Emit, check: Callable[[], None]
) -> Evaluation:
    prompt = picture_prompt(config, trained.folders)
    seeds = list(range(max(config.images, config.rate_images)))
    if not seeds:
        return Evaluation(prompt, None, None, None, None, None)
    emit("phase", name="pictures")
    judge = DigitJudge() if config.base == BUILTIN and config.rate_images else None
    grids, rates = {}, {}
    for kind in ("before", "after"):
        with _before(config, trained) if kind == "before" else contextlib.nullcontext(trained) as shown:
            images = maker(config, shown, check)(prompt, seeds)
        if config.images:
            grids[kind] = run_dir.samples / f"{kind}.png"
            save_grid(images[: config.images], grids[kind])
            emit("sample", kind=kind, path=str(grids[kind]), prompt=prompt)
        if judge:
            rates[kind] = judge.rate(images[: config.rate_images])
    return Evaluation(
        prompt,
        grids.get("before"),
        grids.get("after"),
        rates.get("before"),
        rates.get("after"),
        judge.ceiling() if judge else None,
    )


@contextlib.contextmanager
def _before(config: TrainConfig, trained: TrainedModel) -> Iterator[TrainedModel]:
    """The base model: without its LoRA, or loaded again while a network that was trained whole makes room."""
    if config.network == "lora":
        with lora.disabled(trained.unet):
            yield trained
        return
    device, dtype = trained.device, next(trained.unet.parameters()).dtype
    trained.unet.to("cpu")
    yield replace(trained, unet=base_model.load_unet(trained.base, dtype).to(device))
    trained.unet.to(device)


def picture_at_step(
    config: TrainConfig, prompt: str, run_dir: RunDir, *, emit: Emit, check: Callable[[], None]
) -> Callable[[TrainedModel, int], None]:
    """What `train.run` calls for --sample-every: the first few of the pictures that before and after show."""
    seeds = list(range(max(1, min(config.images, AT_STEP))))

    def picture(so_far: TrainedModel, step: int) -> None:
        path = run_dir.samples / f"step{step:06d}.png"
        save_grid(maker(config, so_far, check)(prompt, seeds), path)
        emit("sample", kind="step", step=step, path=str(path), prompt=prompt)

    return picture


def maker(
    config: TrainConfig, trained: TrainedModel, check: Callable[[], None] = lambda: None
) -> Callable[..., np.ndarray]:
    """A function (prompt, seeds, guidance=config's) -> pictures [n, h, w, 3] uint8 of the U-Net as it is then."""
    pipe = pipeline.load_pipeline(trained.base, trained.unet)

    def make(prompt: str, seeds: list[int], guidance: float | None = None) -> np.ndarray:
        return generate_pictures(
            pipe,
            prompt,
            seeds=seeds,
            resolution=config.resolution,
            steps=config.sample_steps,
            guidance=config.guidance if guidance is None else guidance,
            clip_skip=config.clip_skip,
            check=check,
        )

    return make
