"""Scores of the unlabeled images: how likely each is sensitive."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..common.errors import UserError
from ..common.interrupts import Progress
from ..config.parser import Directory, Flag, Positive, Takes
from ..config.train_config import TrainConfig, option
from ..data.folders import Folders, Sample
from ..models.base_model import Base
from ..objective import class_prior
from ..objective.class_prior import Prior
from . import groups


class AuditOptions(BaseModel):
    """The options that `audit` has beside those of a training: the score, and what to do with the first images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: Literal["unet", "encoder", "lora"] = option(
        "unet",
        "what images are ranked by: the base model's own features (unet), those of an image encoder (encoder), "
        "or, after training, how much the LoRA raised the model's error (lora)",
    )
    encoder: str | None = option(
        None, "with --score encoder: an image encoder of transformers, such as CLIP: a folder or hub id"
    )
    lora: Path | None = option(None, "with --score lora: the LoRA file")
    top: Positive = option(
        48,
        "how many images to show, and to move or exclude [48; unless it is given, no more are moved or excluded than "
        "the upper end of the estimate]",
    )
    move_to: Directory = option(None, "list the files that --apply would move to this folder")
    exclude: Annotated[Path | None, Takes("FILE")] = option(
        None, "write the images' names to a text file, with which the training's --exclude leaves them out"
    )
    apply: Flag = option(False, "move the files to --move-to")
    keep_at_most: Annotated[float | None, Field(gt=0, lt=1)] = option(
        None,
        "with --move-to or --exclude, instead of --top: take as many images as it needs to leave at most this share of "
        "the hidden sensitive ones, as far as these resemble the examples",
    )
    undo: Directory = option(None, "move everything that --apply moved to this folder back, and do nothing else")


@dataclass(frozen=True)
class Ranking:
    """The unlabeled images and their scores; higher is more probably sensitive.

    A score from features comes from a classifier that was not trained on that image.
    """

    unlabeled: list[Sample]  # in the folder's order
    scores: np.ndarray  # [unlabeled]
    examples: np.ndarray  # scores of the sensitive images; empty where the score comes from a LoRA
    prior: Prior | None  # None where the score comes from a LoRA: it was trained on the sensitive images
    groups: np.ndarray | None = None  # [unlabeled] number of each image's group of alike ones; None without features


def rank(
    config: TrainConfig, base: Base, folders: Folders, options: AuditOptions, cache: Path, progress: Progress
) -> Ranking:
    """Score the unlabeled images. Args: cache: folder for latents. Raises: UserError with too few images."""
    from ..data.latent_cache import LatentCache  # imports torch, which takes seconds: after every check of options
    from ..memory import devices
    from ..memory.memory_plan import MemoryPlan
    from . import features

    device = devices.choose_device(config.device)
    precision = devices.choose_precision(config.precision, device)
    labeled = [*folders.sensitive, *folders.held_out]
    samples = folders.unlabeled if options.lora else [*folders.unlabeled, *labeled]
    latents = LatentCache(base, cache, config.resolution, config.bucket, device)
    images = features.Images(latents, samples, MemoryPlan(precision, precision), progress)
    if options.lora:
        growth = features.error_growth(images, options.lora, config.prompt or "")
        return Ranking(folders.unlabeled, growth, np.empty(0), None)
    if options.encoder:
        values = features.encoder_features(
            [sample.path for sample in samples],
            options.encoder,
            resolution=config.resolution,
            bucket=config.bucket,
            device=device,
            progress=progress,
        )
    else:
        values = features.unet_features(images)
    return _rank_by_features(folders.unlabeled, values, seed=config.seed)


def _rank_by_features(unlabeled: list[Sample], values: np.ndarray, *, seed: int) -> Ranking:
    """Score by a classifier between the two folders. Args: values: [n, d], those of the unlabeled images first."""
    is_sensitive = np.arange(len(values)) >= len(unlabeled)
    try:
        scores = class_prior.cross_fit(values, is_sensitive, seed=seed)
    except ValueError as error:
        raise UserError(f"--unlabeled and --sensitive: {error}") from None
    prior = class_prior.estimate(scores, is_sensitive, seed=seed)
    n = len(unlabeled)
    return Ranking(unlabeled, scores[:n], scores[n:], prior, groups.group(values[:n], seed=seed))
