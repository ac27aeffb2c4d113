"""Which samples make up step k, under which caption, with which noise: pure functions of (seed, step, position)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..common.random_streams import CAPTION, NOISE, ORDER, VIEW, rng
from ..config.train_config import TrainConfig
from .folders import Folders, Sample
from .images import PLAIN, View


@dataclass(frozen=True)
class TrainingSample:
    """One sample of one step."""

    position: int  # in the step's batch: with seed and step it decides noise and timestep
    sample: Sample
    caption: str | None
    view: View = PLAIN


@dataclass(frozen=True)
class Batches:
    """Chooses the samples of step k, a pure function of (seed, step): the same after a resume and for every split.

    Each folder is walked in a new order every epoch. The PU identity holds under one caption, so sensitive and
    unlabeled samples always share theirs. Most of both carry unlabeled captions. `own_share` of both carry those of
    sensitive images: under such a prompt, too, the model then learns the normal part of the mixture.
    """

    folders: Folders
    seed: int
    n_unlabeled: int
    n_sensitive: int
    own_share: float = 0.0
    caption_dropout: float = 0.0
    flip: bool = False
    crops: int = 1

    def unlabeled(self, step: int) -> list[TrainingSample]:
        return [self._unlabeled_draw(step, i) for i in range(self.n_unlabeled)]

    def sensitive(self, step: int) -> list[TrainingSample]:
        return [self._sensitive_draw(step, i) for i in range(self.n_sensitive)]

    def _unlabeled_draw(self, step: int, i: int) -> TrainingSample:
        sample = _pick(self.folders.unlabeled, self.seed, 0, step * self.n_unlabeled + i)
        chance = rng(self.seed, CAPTION, step, i).random()
        caption = "" if chance < self.caption_dropout else sample.caption
        if i < self._n_own(self.n_unlabeled):
            caption = self._own(step, i % self._n_own(self.n_sensitive)).caption
        return TrainingSample(i, sample, caption, self._view(step, i))

    def _sensitive_draw(self, step: int, i: int) -> TrainingSample:
        """Return sensitive sample i: those under their own captions come first, as among the unlabeled ones."""
        position, n_own = self.n_unlabeled + i, self._n_own(self.n_sensitive)
        if i < n_own:
            sample = self._own(step, i)
            return TrainingSample(position, sample, sample.caption, self._view(step, position))
        others = self.n_sensitive - n_own
        sample = _pick(self.folders.sensitive, self.seed, 1, step * others + i - n_own)
        first = self._n_own(self.n_unlabeled)
        partner = first + (i - n_own) % (self.n_unlabeled - first)
        return TrainingSample(position, sample, self._unlabeled_draw(step, partner).caption, self._view(step, position))

    def _own(self, step: int, i: int) -> Sample:
        return _pick(captioned(self.folders.sensitive), self.seed, 2, step * self._n_own(self.n_sensitive) + i)

    def _n_own(self, n: int) -> int:
        """Return how many of n carry a sensitive caption: some and not all, or R would compare different prompts."""
        if self.own_share in (0, 1):
            return int(self.own_share * n)
        return min(max(round(self.own_share * n), 1), n - 1)

    def _view(self, step: int, position: int) -> View:
        chance = rng(self.seed, VIEW, step, position)
        return View(self.flip and chance.random() < 0.5, int(chance.integers(self.crops)))


def batches(config: TrainConfig, folders: Folders) -> Batches:
    """Return the batches of a run."""
    enough = min(config.batch_unlabeled, config.batch_sensitive) > 1
    has_own = enough and config.objective != "unsupervised" and captioned(folders.sensitive)
    return Batches(
        folders,
        config.seed,
        n_unlabeled=config.batch_unlabeled,
        n_sensitive=config.batch_sensitive,
        own_share=config.sensitive_prompt_share if has_own else 0.0,
        caption_dropout=config.caption_dropout,
        flip=config.flip,
        crops=config.crops,
    )


def views(*, flip: bool, crops: int) -> list[View]:
    """List all views that a step may ask for."""
    return [View(f, c) for f in ((False, True) if flip else (False,)) for c in range(crops)]


def captioned(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that have a caption of their own."""
    return [s for s in samples if s.caption is not None]


def noise_and_t(seed: int, step: int, position: int, shape: tuple[int, ...], timesteps: int) -> tuple[np.ndarray, int]:
    """Return the noise (fp32, of shape) and timestep of one sample: a pure function of its arguments."""
    chance = rng(seed, NOISE, step, position)
    return chance.standard_normal(shape, dtype=np.float32), int(chance.integers(timesteps))


def _pick(samples: Sequence[Sample], seed: int, kind: int, count: int) -> Sample:
    epoch, place = divmod(count, len(samples))
    return samples[_order(seed, kind, epoch, len(samples))[place]]


@functools.lru_cache(maxsize=8)
def _order(seed: int, kind: int, epoch: int, n: int) -> np.ndarray:
    return rng(seed, ORDER, kind, epoch).permutation(n)
