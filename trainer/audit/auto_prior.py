"""--prior auto: the share of sensitive images among the unlabeled ones, estimated before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..objective import class_prior
from ..objective.class_prior import Prior

if TYPE_CHECKING:
    from ..data.job import TrainingJob
    from ..memory.memory_plan import MemoryPlan
    from ..reporting.run_context import RunContext


GUESS = 0.2  # where nothing can be told
LEAST, MOST = 0.01, 0.9  # 0 would unlearn nothing, 1 leave nothing to learn


def resolve_prior(job: TrainingJob, plan: MemoryPlan, context: RunContext) -> tuple[float, list[str]]:
    """Estimate the prior to train with where --prior is auto. The latents it needs are those of the training.

    Returns: (prior, what to tell people).
    """
    config, folders = job.config, job.folders
    if config.objective == "unsupervised":
        return GUESS, []  # which has no use for it
    labeled = [*folders.sensitive, *folders.held_out]
    bound = class_prior.bound(len(folders.unlabeled), len(labeled))
    if bound > class_prior.TOO_WIDE:
        return GUESS, [_describe_too_few(len(folders.unlabeled), len(labeled), bound)]
    from ..data.latent_cache import LatentCache
    from . import features  # imports torch, which the words below do not need

    samples = [*folders.unlabeled, *labeled]
    cache = LatentCache(job.base, context.run_dir.cache, config.resolution, config.bucket, context.device)
    images = features.Images(cache, samples, plan, context.progress("prior"))
    is_sensitive = np.arange(len(samples)) >= len(folders.unlabeled)
    scores = class_prior.cross_fit(features.unet_features(images), is_sensitive, seed=config.seed)
    found = class_prior.estimate(scores, is_sensitive, seed=config.seed)
    value = usable(found)
    return value, [*describe(found), f"training with prior {value:g}"]


def usable(found: Prior) -> float:
    """What to train with: the estimate where it tells something, and then nothing that would unlearn all or none."""
    return round(min(max(found.value, LEAST), MOST), 3) if found.is_telling else GUESS


def describe(prior: Prior) -> list[str]:
    """The estimate in words, with what it is worth."""
    lines = [
        f"prior: {prior.value:.2f} (95 % interval {prior.low:.2f} to {prior.high:.2f}, best-bin estimation), from "
        f"{prior.n_unlabeled} unlabeled and {prior.n_sensitive} sensitive images",
        f"cross-check by Elkan and Noto, which tends to be too high: {prior.elkan_noto:.2f}",
    ]
    return lines if prior.is_telling else [*lines, _describe_too_few(prior.n_unlabeled, prior.n_sensitive, prior.bound)]


def _describe_too_few(n_unlabeled: int, n_sensitive: int, bound: float) -> str:
    caps = ", ".join(f"{1 / p:g} at {p:g}" for p in (0.1, GUESS, 0.4))
    return (
        f"{n_unlabeled} unlabeled and {n_sensitive} sensitive images are too few to tell the prior: an estimate may be "
        f"off by {bound:.2f}, so {GUESS} is as good as any. What it changes: the sensitive loss can grow to about "
        f"1 / prior times the unlabeled one ({caps}) before unlearning turns around"
    )
