"""The `make-data` command: makes the two image folders of a training with the base model itself.

This is the paper's set-up for Stable Diffusion: normal images of one prompt, sensitive images of another prompt hidden
among them, and sensitive examples. Each PNG holds its settings, so that the same command resumes a stopped run.
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
from ..common.wording import counted
from ..data import contact_sheet
from ..data.folders import Sample
from ..models import base_model, hub, pipeline
from ..models.base_model import Base
from . import dataset_manifest
from .dataset_manifest import Record
from .dataset_recipe import KINDS, ImageSpec, Recipe, image_specs, parse, training_command

MAX_BATCH = 16  # images: larger batches save little time, and a stopped run loses one batch
MIB_PER_IMAGE = 1024  # GPU memory for one more 512 px image, guidance included; a cautious estimate


def main(argv: Sequence[str]) -> int:
    """Run the `make-data` command. Returns: an exit code. Raises: UserError."""
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
    except (errors.Stopped, KeyboardInterrupt):  # a second Ctrl-C quits at once
        return events.failure("stopped", "stopped; to resume, give the same command again", errors.STOPPED)
    except Exception as error:
        from ..memory.devices import is_out_of_memory

        if is_out_of_memory(error):
            advice = "out of memory with one image at a time. Try a smaller --resolution, --precision fp16 on a GPU, "
            advice += "or --device cpu. The images made so far are kept."
            return events.failure("out-of-memory", advice, errors.OUT_OF_MEMORY)
        if said := describe_write_error(error):
            return events.failure("disk", f"{said}. The images made so far are kept.", errors.FAILED)
        raise


def _find_base(recipe: Recipe) -> Base:
    base = Base(hub.resolve_model_path(recipe.base), recipe.vae, recipe.prediction_type)
    base_model.check(base, clip_skip=recipe.clip_skip)
    return base


@dataclass(frozen=True)
class Work:
    """A data set in the making."""

    recipe: Recipe
    base: Base
    common: Record  # see dataset_manifest.common_settings
    specs: list[ImageSpec]  # all images of the data set
    existing: set[str]  # their files that exist; grows


class DatasetEvents(EventWriter):
    """Reports progress and results: as messages for people, or as events on stdout."""

    def say(self, text: str) -> None:
        """Print a message for people."""
        tqdm.write(text, file=sys.stderr if self.is_on else sys.stdout)

    def failure(self, kind: str, message: str, code: int) -> int:
        """Report why the command ends. Args: kind: of the error event. Returns: the exit code."""
        self.emit("error", kind=kind, message=message)
        print(message if code == errors.STOPPED else f"error: {message}", file=sys.stderr)
        return code


def _run(recipe: Recipe, base: Base, events: DatasetEvents, check: Callable[[], None]) -> int:
    common = dataset_manifest.common_settings(recipe, base_model.part_hash(base, "unet"))
    work = Work(recipe, base, common, image_specs(recipe), dataset_manifest.existing_files(recipe, common))
    for kind in KINDS:
        of = f' of "{recipe.prompt(kind)}"' if recipe.count(kind) else ""
        events.say(f"{kind}: {counted(recipe.count(kind), 'image')}{of}")
    total = len(work.specs)
    if work.existing:
        events.say(f"{len(work.existing)} of {counted(total, 'image')} {'exists' if total == 1 else 'exist'} already")
    try:
        with tqdm(
            total=total, initial=len(work.existing), unit="image", dynamic_ncols=True, disable=events.is_on
        ) as bar:
            for spec in _make(work, events, check):
                events.emit("phase", name="make-data", what=spec.kind, done=len(work.existing), total=total)
                bar.update()
    finally:  # also when the run is stopped
        existing = [spec for spec in work.specs if spec.file in work.existing]
        dataset_manifest.save_manifest(recipe.out, existing, common)
    if recipe.sensitive_captions:
        for spec in (spec for spec in work.specs if spec.kind == "sensitive"):
            write_text((recipe.out / spec.file).with_suffix(".txt"), spec.prompt + "\n")
    _describe(work, events)
    return errors.DONE


def _describe(work: Work, events: DatasetEvents) -> None:
    """Write the contact sheet, make-data.json and the page, and print the last messages."""
    recipe = work.recipe
    groups = {
        f"{kind} ({where}/)": [Sample(recipe.out / spec.file, None) for spec in work.specs if spec.kind == kind]
        for kind, where in (("normal", "unlabeled"), ("hidden", "unlabeled"), ("sensitive", "sensitive"))
    }
    contact_sheet.save_groups(groups, recipe.out / "sheet.png")
    train = _command_line(training_command(recipe))
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
        f"contact sheet: {recipe.out / 'sheet.png'}; report: {page}",
        f"to train on them: {train}",
    ]
    if events.is_on:
        files = {"unlabeled": "unlabeled", "sensitive": "sensitive", "sheet": "sheet.png", "report": "report.html"}
        where = {name: str(recipe.out / file) for name, file in files.items()}
        how = {"prompt": recipe.unlabeled_prompt, "resolution": recipe.resolution, "prior": recipe.prior}
        events.emit("done", text="\n".join(lines), **how, **where)
    else:
        events.say("\n".join(lines))


def _command_line(words: Sequence[str]) -> str:
    """Join words to a command line for this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _make(work: Work, events: DatasetEvents, check: Callable[[], None]) -> Iterator[ImageSpec]:
    """Make, save and yield the missing images.

    Batches do not depend on which images exist, and a batch that lacks one image is made whole: so a resumed run gives
    the same bits as an uninterrupted one.
    """
    if all(spec.file in work.existing for spec in work.specs):
        return
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it misses what only 4-bit models need
    from ..memory import devices
    from ..memory.memory_plan import DTYPES

    recipe = work.recipe
    device = devices.choose_device(recipe.device)
    dtype = DTYPES[devices.choose_precision(recipe.precision, device)]
    events.emit("phase", name="load", device=str(device))
    pipe = pipeline.load_pipeline(work.base, base_model.load_unet(work.base, dtype).to(device))
    size = first_batch_size(recipe, device)
    for kind in KINDS:
        todo = [spec for spec in work.specs if spec.kind == kind]
        while todo:
            batch = todo[:size]
            if any(spec.file not in work.existing for spec in batch):
                images = _generate_what_fits(pipe, recipe, batch, check)
                if len(images) < len(batch):
                    size = len(images)
                    events.say(f"out of memory: batches of {size} from now on")
                yield from _save_missing(work, batch, images)
            todo = todo[size:]


def _save_missing(work: Work, batch: list[ImageSpec], images: np.ndarray) -> Iterator[ImageSpec]:
    """Save and yield those that do not exist. Args: images: [n, h, w, 3] uint8, of the first n of the batch."""
    for spec, pixels in zip(batch, images, strict=False):
        if spec.file not in work.existing:
            dataset_manifest.save_image(work.recipe.out, spec, pixels, work.common)
            work.existing.add(spec.file)
            yield spec


def first_batch_size(recipe: Recipe, device: Any) -> int:
    """Return --micro-batch; for auto, what should fit into the GPU's free memory, or few images on another device."""
    from ..memory import devices
    from . import generate

    if recipe.micro_batch != "auto":
        return recipe.micro_batch
    fitting = generate.PIXELS_AT_ONCE / recipe.resolution**2
    if device.type == "cuda":
        fitting = devices.budget_mib(device, None) / MIB_PER_IMAGE * (512 / recipe.resolution) ** 2
    return max(1, min(MAX_BATCH, int(fitting)))


def _generate_what_fits(pipe: Any, recipe: Recipe, batch: list[ImageSpec], check: Callable[[], None]) -> np.ndarray:
    """Make the images of a batch; when memory runs out, of its first half, quarter, …: [n, h, w, 3] uint8."""
    from ..memory import devices
    from . import generate

    settings = generate.PictureSettings(
        recipe.resolution,
        recipe.steps,
        recipe.guidance,
        recipe.clip_skip,
        recipe.negative_prompt or "",
        sampler=recipe.sampler,
    )
    images = np.empty(0)

    def attempt(n: int) -> None:
        nonlocal images
        seeds = [spec.seed for spec in batch[:n]]
        images = generate.generate_pictures(pipe, batch[0].prompt, seeds, settings, at_once=n, check=check)

    devices.largest_that_fits(len(batch), attempt)
    return images
