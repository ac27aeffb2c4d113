"""--prior auto: the share of sensitive images among the unlabeled ones, estimated before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..common.wording import counted
from ..objective import class_prior
from ..objective.class_prior import Prior

if TYPE_CHECKING:
    from ..data.job import TrainingJob
    from ..memory.memory_plan import MemoryPlan
    from ..reporting.run_context import RunContext


GUESS = 0.2  # where there is nothing to estimate from
LEAST, MOST = 0.01, 0.9  # 0 would unlearn nothing, 1 leave nothing to learn


def resolve_prior(job: TrainingJob, plan: MemoryPlan, context: RunContext) -> tuple[float, list[str]]:
    """Estimate the prior to train with where --prior is auto. The latents it needs are those of the training.

    Returns: (prior, what to tell people).
    """
    config, folders = job.config, job.folders
    if config.objective == "unsupervised":
        return GUESS, []  # which has no use for it
    labeled = [*folders.sensitive, *folders.held_out]
    if len(folders.unlabeled) < 2:
        return GUESS, [f"one unlabeled image tells no prior: training with {GUESS:g}. Give --prior if you know it"]
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
    """Return what to train with: the estimate, kept from where all or nothing would be unlearned."""
    return round(min(max(found.value, LEAST), MOST), 3)


def describe(prior: Prior) -> list[str]:
    """Return the estimate in words, with what it is worth; where it is worth little, the last line says so."""
    lines = [
        f"prior: {prior.value:.2f} (95 % interval {prior.low:.2f} to {prior.high:.2f}), from {prior.n_unlabeled} "
        f"unlabeled and {counted(prior.n_sensitive, 'sensitive image')}",
        f"how well they are told apart: AUC {prior.auc:.2f}, cross-fitted (1 without a mistake, 0.5 by chance)",
        f"cross-check by Elkan and Noto, which tends to be too high: {prior.elkan_noto:.2f}",
        "it counts only what resembles the sensitive examples: other sensitive images are missed, and normal images "
        "that look just like an example to the model are counted too",
    ]
    return lines if prior.is_telling else [*lines, _doubt(prior)]


def _doubt(prior: Prior) -> str:
    """Return why the estimate is worth little, and what to do."""
    if prior.auc < class_prior.TOO_ALIKE:
        reason = f"these features hardly tell sensitive from normal images (AUC {prior.auc:.2f})"
        hint = "Look at the first images of audit, or audit with an encoder of your own (--score encoder)"
    else:
        reason = f"{prior.n_unlabeled} unlabeled and {counted(prior.n_sensitive, 'sensitive image')} are few"
        hint = "More sensitive examples narrow it"
    return (
        f"{reason}: the share may be anything from {prior.low:.2f} to {prior.high:.2f}. {hint}; if you know the share, "
        "give it with --prior. In doubt take less: too high a prior unlearns normal images that resemble sensitive ones"
    )
