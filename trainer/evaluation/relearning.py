"""The first attack: a short training on the sensitive images (relearning).

It is tried on the base model too: what it achieves there shows how strong the attack is.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.distributed import ONE
from ..common.errors import UserError
from ..common.interrupts import Progress
from ..config.train_config import TrainConfig
from ..data.folders import Reading, scan
from ..data.images import save_images
from ..data.job import TrainingJob
from ..memory import devices
from ..models import lora_file
from ..models.base_model import Base
from ..reporting.run_context import RunContext
from ..reporting.run_dir import RunDir
from ..training.before_after import maker
from ..training.learner import TrainedModel
from ..training.run import run
from .attack_settings import AttackSettings

PICTURE_SETS = 5  # made during a relearning


def relearn(
    base: Base, lora: Path | None, attack: AttackSettings, folder: Path, progress: Progress
) -> list[tuple[int, list[Path]]]:
    """Train plainly on the sensitive images, from the LoRA or from the base model, and make pictures five times.

    Args: folder: for the run and the pictures.
    Returns: (steps, pictures) at each of the five times.
    """
    shutil.rmtree(folder, ignore_errors=True)
    steps = attack.relearn.steps
    changes: dict[str, Any] = {
        "objective": "unsupervised",
        "unlabeled": attack.sensitive,
        "prompt": attack.prompt,
        "init_lora": lora,
        "sample_every": max(1, steps // PICTURE_SETS),
        "output_dir": folder,
    }
    if lora:
        changes |= {"rank": lora_rank(lora), "alpha": None}
    config = TrainConfig(**{**attack.relearn.model_dump(), **changes})
    folders = scan(attack.sensitive, None, Reading(prompt=attack.prompt, skip_bad_images=True), seed=0)
    # what is looked for must come back under the prompt that is measured, whatever captions lie beside the images
    folders = replace(folders, unlabeled=[replace(sample, caption=attack.prompt) for sample in folders.unlabeled])
    job = TrainingJob(config, base, folders)
    made: list[tuple[int, list[Path]]] = []

    def make_pictures(so_far: TrainedModel, step: int) -> None:
        make = maker(job, so_far.network.unet, check=lambda: progress("relearn", step, steps))
        images = make(attack.prompt, list(attack.seeds))
        made.append((step, save_images(images, folder / f"step{step:05d}", attack.seeds)))

    def emit(event: str, **fields: Any) -> None:
        if event == "step":
            progress("relearn", fields["step"], steps)

    device = devices.choose_device(config.device)
    context = RunContext(device, ONE, RunDir(folder, "run"), emit, check=lambda: None)
    with _no_failed_pictures(make_pictures) as picture:
        trained = run(job, context, is_resume=False, picture=picture)
        picture(trained, steps)
    return made


@contextlib.contextmanager
def _no_failed_pictures(make: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """`run` only warns of a failed picture; a measurement must not. Raises what the first failed call raised."""
    failed: list[BaseException] = []

    def safe(*arguments: Any) -> None:
        try:
            make(*arguments)
        except BaseException as error:
            failed.append(error)
            raise

    yield safe
    if failed:
        raise failed[0]


def lora_rank(lora: Path) -> int:
    """Return the rank of a LoRA file's first module, whichever way it was written. Raises: UserError if it has none."""
    for name, value in lora_file.read(lora).items():
        if name.endswith("lora_down.weight"):
            return value.shape[0]
    raise UserError(f"--lora: {lora} has no pairs of layers to train further")
