"""Images that are nearly the same, by a perceptual hash: rescaled, recompressed or lightly edited copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common.errors import UserError
from ..common.interrupts import Progress
from ..config.train_config import TrainConfig
from ..data.folders import Folders, Sample
from ..models.base_model import Base
from ..objective import class_prior
from ..objective.class_prior import Prior

SCORES = ("unet", "encoder", "lora")


@dataclass(frozen=True)
class AuditOptions:
    """What images are scored by, and what is done with the result: the command's own options."""

    score: str = "unet"
    encoder: str | None = None
    lora: Path | None = None
    top: int = 48
    move_to: Path | None = None
    exclude: Path | None = None
    apply: bool = False


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
