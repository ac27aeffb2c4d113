"""The `make-data` command: the two folders of a training, made by the base model itself.

The paper's set-up for Stable Diffusion: normal images under one prompt, sensitive ones under another hidden among them,
and sensitive examples. Each PNG carries how it was made, so that the same command goes on where it was stopped.
"""

import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ..common import errors
from ..common.errors import UserError
from ..common.events import EventWriter
from ..common.files import describe_write_error, locked, write_text
from ..common.interrupts import follow_parent, stoppable
from ..data import contact_sheet
from ..data.folders import Sample
from ..models import base_model, hub, pipeline
from ..models.base_model import Base
from . import dataset_manifest
from .dataset_manifest import Record
from .dataset_recipe import KINDS, Image, Recipe, images, parse, training

MOST_AT_ONCE = 16  # images: more of them hardly save time, and are lost where a run is stopped
MIB_EACH = 1024  # of a card for one more 512 px image, guidance included; a guess on the safe side


def main(argv: Sequence[str]) -> int:
    """Make what is missing, then describe all of it. Raises: UserError. Returns: an exit code."""
    call = parse(argv)
    events = DatasetEvents(is_on=call.events)
    if call.follow_parent:
        follow_parent()
    try:
        with stoppable() as check:
            base = _find_base(call.recipe)
            with locked(call.recipe.out):
                return _run(call.recipe, base, events, check)
    except UserError as error:
        events.emit("error", kind=error.kind, message=str(error))
        raise
    except errors.Stopped:
        return events.failure("stopped", "stopped; the same command goes on from here", errors.STOPPED)
    except Exception as error:
        from ..memory.devices import is_out_of_memory

        if is_out_of_memory(error):
            advice = "out of memory with one image at a time. Try a smaller --resolution, --precision fp16 on a card, "
            advice += "or --device cpu. What was made is kept."
            return events.failure("out-of-memory", advice, errors.OUT_OF_MEMORY)
        if said := describe_write_error(error):
            return events.failure("disk", f"{said}. What was made is kept.", errors.FAILED)
        raise


def _find_base(recipe: Recipe) -> Base:
    base = Base(hub.resolve_model_path(recipe.base), recipe.vae, recipe.prediction_type)
    base_model.check(base, clip_skip=recipe.clip_skip)
    return base


@dataclass(frozen=True)
class Work:
    """What to make of what, and what is there."""

    recipe: Recipe
    base: Base
    common: Record  # see manifest.shared
    wanted: list[Image]
    there: set[str]  # files; grows


class DatasetEvents(EventWriter):
    """Progress and results: a bar and lines for people, or events on stdout."""

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr if self.is_on else sys.stdout)

    def failure(self, kind: str, message: str, code: int) -> int:
        self.emit("error", kind=kind, message=message)
        print(message if code == errors.STOPPED else f"error: {message}", file=sys.stderr)
        return code


def _run(recipe: Recipe, base: Base, events: DatasetEvents, check: Callable[[], None]) -> int:
    common = dataset_manifest.shared(recipe, base_model.part_hash(base, "unet"))
    work = Work(recipe, base, common, images(recipe), dataset_manifest.kept(recipe, common))
    for kind in KINDS:
        of = f' of "{recipe.prompt(kind)}"' if recipe.count(kind) else ""
        events.say(f"{kind}: {recipe.count(kind)} images{of}")
    total = len(work.wanted)
    if work.there:
        events.say(f"{len(work.there)} of {total} images are there already")
    try:
        with tqdm(total=total, initial=len(work.there), unit="image", dynamic_ncols=True, disable=events.is_on) as bar:
            for one in _make(work, events, check):
                events.emit("phase", name="make-data", what=one.kind, done=len(work.there), total=total)
                bar.update()
    finally:  # also of what a stopped run has made
        dataset_manifest.write(recipe.out, [one for one in work.wanted if one.file in work.there], common)
    if recipe.sensitive_captions:
        for one in (one for one in work.wanted if one.kind == "sensitive"):
            write_text((recipe.out / one.file).with_suffix(".txt"), one.prompt + "\n")
    _describe(work, events)
    return errors.DONE


def _describe(work: Work, events: DatasetEvents) -> None:
    """Contact sheet, result and page; and the last lines on the screen."""
    recipe = work.recipe
    piles = {
        f"{kind} ({where}/)": [Sample(recipe.out / one.file, None) for one in work.wanted if one.kind == kind]
        for kind, where in (("normal", "unlabeled"), ("hidden", "unlabeled"), ("sensitive", "sensitive"))
    }
    contact_sheet.save_groups(piles, recipe.out / "sheet.png")
    train = _line(training(recipe))
    result = {
        "counts": {kind: recipe.count(kind) for kind in KINDS},
        "prompts": {kind: recipe.prompt(kind) for kind in KINDS if recipe.count(kind)},
        "prior": recipe.prior,
        "settings": work.common,
        "train": train,
    }
    write_text(recipe.out / "make-data.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    from . import dataset_report

    page = dataset_report.write(result, recipe.out)
    lines = [
        f"prior: {recipe.prior:.4g} ({recipe.n_contaminate} hidden among "
        f"{recipe.n_unlabeled + recipe.n_contaminate} unlabeled images)",
        f"look at them: {recipe.out / 'sheet.png'}; all about them: {page}",
        f"train with: {train}",
    ]
    if events.is_on:
        files = {"unlabeled": "unlabeled", "sensitive": "sensitive", "sheet": "sheet.png", "report": "report.html"}
        where = {name: str(recipe.out / file) for name, file in files.items()}
        how = {"prompt": recipe.unlabeled_prompt, "resolution": recipe.resolution, "prior": recipe.prior}
        events.emit("done", text="\n".join(lines), **how, **where)
    else:
        events.say("\n".join(lines))


def _line(words: Sequence[str]) -> str:
    """To be pasted into the shell of this system."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _make(work: Work, events: DatasetEvents, check: Callable[[], None]) -> Iterator[Image]:
    """Make, save and yield what is not there.

    Batches begin at the same images whatever is there already, and of one that lacks an image all are made: so an
    interrupted run ends with the same bits.
    """
    if all(one.file in work.there for one in work.wanted):
        return
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it misses what only 4-bit models need
    from ..memory import devices
    from ..memory.memory_plan import DTYPES

    recipe = work.recipe
    device = devices.choose_device(recipe.device)
    dtype = DTYPES[devices.choose_precision(recipe.precision, device)]
    events.emit("phase", name="load", device=str(device))
    pipe = pipeline.load_pipeline(work.base, base_model.load_unet(work.base, dtype).to(device))
    pipeline.set_sampler(pipe, recipe.sampler)
    size = at_once(recipe, device)
    for kind in KINDS:
        todo = [one for one in work.wanted if one.kind == kind]
        while todo:
            batch = todo[:size]
            if any(one.file not in work.there for one in batch):
                made = _pictures(pipe, recipe, batch, check)
                if len(made) < len(batch):
                    size = len(made)
                    events.say(f"out of memory: {size} at once from now on")
                yield from _save_missing(work, batch, made)
            todo = todo[size:]


def _save_missing(work: Work, batch: list[Image], made: np.ndarray) -> Iterator[Image]:
    """Args: made: [n, h, w, 3] uint8 of the first n of the batch."""
    for one, pixels in zip(batch, made, strict=False):
        if one.file not in work.there:
            dataset_manifest.save(work.recipe.out, one, pixels, work.common)
            work.there.add(one.file)
            yield one


def at_once(recipe: Recipe, device: Any) -> int:
    """Images in the U-Net at once to begin with. auto: what the free memory of a card should bear; few elsewhere."""
    from ..memory import devices
    from . import generate

    if recipe.micro_batch != "auto":
        return recipe.micro_batch
    fitting = generate.PIXELS_AT_ONCE / recipe.resolution**2
    if device.type == "cuda":
        fitting = devices.budget_mib(device, None) / MIB_EACH * (512 / recipe.resolution) ** 2
    return max(1, min(MOST_AT_ONCE, int(fitting)))


def _pictures(pipe: Any, recipe: Recipe, batch: list[Image], check: Callable[[], None]) -> np.ndarray:
    """Pictures of the whole batch, or of its first half, quarter, … where memory bears no more: [n, h, w, 3] uint8."""
    from ..memory import devices
    from . import generate

    settings = generate.PictureSettings(
        recipe.resolution, recipe.steps, recipe.guidance, recipe.clip_skip, recipe.negative_prompt or ""
    )
    made = None

    def attempt(n: int) -> None:
        nonlocal made
        seeds = [one.seed for one in batch[:n]]
        made = generate.generate_pictures(pipe, batch[0].prompt, seeds, settings, at_once=n, check=check)

    devices.largest_that_fits(len(batch), attempt)
    return made
