"""Which samples make up step k, under which caption, with which noise: pure functions of (seed, step, position)."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..common.random_streams import CAPTION, NOISE, ORDER, SHUFFLE, VIEW, rng
from ..config.train_config import TrainConfig
from .captions import ORDERS, reordered
from .folders import Folders, Sample
from .images import PLAIN, View


@dataclass(frozen=True)
class TrainingSample:
    """One sample of one step."""

    position: int  # in the step's batch: with seed and step it decides noise and timestep
    sample: Sample
    caption: str
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
    shuffle: bool = False  # the tags of captions, but for the first keep_tokens
    keep_tokens: int = 0

    def unlabeled(self, step: int) -> list[TrainingSample]:
        return [self._unlabeled_draw(step, i) for i in range(self.n_unlabeled)]

    def sensitive(self, step: int) -> list[TrainingSample]:
        return [self._sensitive_draw(step, i) for i in range(self.n_sensitive)]

    def _unlabeled_draw(self, step: int, i: int) -> TrainingSample:
        sample = _pick(self._unlabeled_pool, self.seed, 0, step * self.n_unlabeled + i)
        chance = rng(self.seed, CAPTION, step, i).random()
        caption = "" if chance < self.caption_dropout else self._in_some_order(sample.own_caption, step, i)
        if i < self._n_own(self.n_unlabeled):
            caption = self._own(step, i % self._n_own(self.n_sensitive))[1]
        return TrainingSample(i, sample, caption, self._view(step, i))

    def _sensitive_draw(self, step: int, i: int) -> TrainingSample:
        """Return sensitive sample i: those under their own captions come first, as among the unlabeled ones."""
        position, n_own = self.n_unlabeled + i, self._n_own(self.n_sensitive)
        if i < n_own:
            return TrainingSample(position, *self._own(step, i), self._view(step, position))
        others = self.n_sensitive - n_own
        sample = _pick(self._sensitive_pool, self.seed, 1, step * others + i - n_own)
        first = self._n_own(self.n_unlabeled)
        partner = first + (i - n_own) % (self.n_unlabeled - first)
        return TrainingSample(position, sample, self._unlabeled_draw(step, partner).caption, self._view(step, position))

    def _own(self, step: int, i: int) -> tuple[Sample, str]:
        """Return a sensitive image with a caption of its own, and that caption in this step's order."""
        sample = _pick(self._own_pool, self.seed, 2, step * self._n_own(self.n_sensitive) + i)
        return sample, self._in_some_order(sample.own_caption, step, self.n_unlabeled + i)

    def _in_some_order(self, caption: str, step: int, position: int) -> str:
        if not self.shuffle:
            return caption
        order = int(rng(self.seed, SHUFFLE, step, position).integers(ORDERS))
        return reordered(caption, order, keep=self.keep_tokens, seed=self.seed)

    @functools.cached_property
    def _unlabeled_pool(self) -> list[Sample]:
        return _repeated(self.folders.unlabeled)

    @functools.cached_property
    def _sensitive_pool(self) -> list[Sample]:
        return _repeated(self.folders.sensitive)

    @functools.cached_property
    def _own_pool(self) -> list[Sample]:
        return _repeated(captioned(self.folders.sensitive))

    def all_captions(self) -> set[str]:
        """Return every caption that a step may ask for."""
        kinds = self.folders.unlabeled, self.folders.sensitive, self.folders.held_out
        written = {sample.caption for kind in kinds for sample in kind if sample.caption}
        orders = range(ORDERS if self.shuffle else 1)
        found = {reordered(text, i, keep=self.keep_tokens, seed=self.seed) for text in written for i in orders}
        return {"", *written, *found}

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
        shuffle=config.shuffle_caption,
        keep_tokens=config.keep_tokens,
    )


def views(*, flip: bool, crops: int) -> list[View]:
    """List all views that a step may ask for."""
    return [View(f, c) for f in ((False, True) if flip else (False,)) for c in range(crops)]


def captioned(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that have a caption of their own."""
    return [s for s in samples if s.caption is not None]


def noise_and_t(
    seed: int, step: int, position: int, shape: tuple[int, ...], timesteps: int, *, offset: float = 0.0
) -> tuple[np.ndarray, int]:
    """Return the noise (fp32, of shape) and timestep of one sample: a pure function of its arguments.

    Args: offset: how much of the noise is the same over a whole channel (kohya's noise_offset).
    """
    chance = rng(seed, NOISE, step, position)
    noise, t = chance.standard_normal(shape, dtype=np.float32), int(chance.integers(timesteps))
    if offset:
        noise += np.float32(offset) * chance.standard_normal((shape[0], 1, 1), dtype=np.float32)
    return noise, t


def _repeated(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples as often as they are shown in an epoch; only how the numbers compare matters."""
    shared = math.gcd(*(sample.repeats for sample in samples))
    return [sample for sample in samples for _ in range(sample.repeats // shared)]


def _pick(samples: Sequence[Sample], seed: int, kind: int, count: int) -> Sample:
    epoch, place = divmod(count, len(samples))
    return samples[_order(seed, kind, epoch, len(samples))[place]]


@functools.lru_cache(maxsize=8)
def _order(seed: int, kind: int, epoch: int, n: int) -> np.ndarray:
    return rng(seed, ORDER, kind, epoch).permutation(n)
