"""Images that are nearly the same, by a perceptual hash: rescaled, recompressed or lightly edited copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..common.errors import UserError
from ..common.interrupts import Progress
from ..config.parser import Directory, Flag, Positive, Takes
from ..config.train_config import TrainConfig, option
from ..data.folders import Folders, Sample
from ..models.base_model import Base
from ..objective import class_prior
from ..objective.class_prior import Prior


class AuditOptions(BaseModel):
    """What images are scored by, and what is done with the result: the command's own options."""

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
    top: Positive = option(48, "how many images to show, and to move or exclude")
    move_to: Directory = option(None, "list the files that --apply would move to this folder")
    exclude: Annotated[Path | None, Takes("FILE")] = option(
        None, "write their names to a text file, with which the training's --exclude leaves them out"
    )
    apply: Flag = option(False, "move the files to --move-to")


@dataclass(frozen=True)
class Ranking:
    """Higher scores are more probably sensitive. By features: each from a classifier that had not seen the image."""

    unlabeled: list[Sample]  # as the folder has them
    scores: np.ndarray  # [unlabeled]
    prior: Prior | None  # None where the score comes from a LoRA: it was trained on the sensitive images


def rank(
    config: TrainConfig, base: Base, folders: Folders, how: AuditOptions, cache: Path, progress: Progress
) -> Ranking:
    """Score the unlabeled images. Raises: UserError with too few images."""
    from ..data.latent_cache import LatentCache  # what imports torch comes after every complaint about options
    from ..memory import devices
    from ..memory.memory_plan import MemoryPlan
    from . import features

    device = devices.choose_device(config.device)
    precision = devices.choose_precision(config.precision, device)
    plan, n = MemoryPlan(precision, precision), len(folders.unlabeled)
    samples = folders.unlabeled if how.score == "lora" else [*folders.unlabeled, *folders.sensitive, *folders.held_out]
    latents = LatentCache(base, cache, config.resolution, config.bucket, device)
    images = features.Images(latents, samples, plan, progress)
    if how.score == "lora":
        return Ranking(folders.unlabeled, features.error_growth(images, how.lora, config.prompt or ""), None)
    if how.score == "encoder":
        paths, more = [sample.path for sample in samples], {"device": device, "progress": progress}
        shape = {"resolution": config.resolution, "bucket": config.bucket}
        values = features.encoder_features(paths, how.encoder, **shape, **more)
    else:
        values = features.unet_features(images)
    is_sensitive = np.arange(len(samples)) >= n
    try:
        scores = class_prior.cross_fit(values, is_sensitive, seed=config.seed)
    except ValueError as error:
        raise UserError(f"--unlabeled and --sensitive: {error}") from None
    return Ranking(folders.unlabeled, scores[:n], class_prior.estimate(scores, is_sensitive, seed=config.seed))


HASH_SIDE = 16  # 256 bits
NEAR = 26  # bits that may differ, a tenth: re-encoding changes a few, another picture about half


def near_duplicates(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs, each in the order of paths."""
    import imagehash
    from PIL import Image

    bits = []
    for path in paths:
        with Image.open(path) as image:
            bits.append(imagehash.phash(image.convert("L"), hash_size=HASH_SIDE).hash.ravel())
    signs = np.where(np.array(bits), 1, -1).astype(np.int32)
    found = []
    for i, row in enumerate(signs):
        differing = (HASH_SIDE**2 - signs[i + 1 :] @ row) // 2
        found += [(paths[i], paths[i + 1 + j]) for j in np.flatnonzero(differing <= NEAR)]
    return found
