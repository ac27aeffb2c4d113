"""Which samples make up step k, under which caption, with which noise: pure functions of (seed, step, position)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .dataset import PLAIN, Folders, Sample, View
from .randomness import CAPTION, NOISE, ORDER, VIEW, rng


@dataclass(frozen=True)
class Draw:
    """One sample of one step."""

    position: int  # in the step's batch: with seed and step it decides noise and timestep
    sample: Sample
    caption: str
    view: View = PLAIN
    is_extra: bool = False  # sensitive, under its own caption


@dataclass(frozen=True)
class Batches:
    """Which samples make up step k: a pure function of (seed, step), the same after a resume and for every split.

    Each pile is walked in a new order every epoch. A sensitive draw carries the caption of an unlabeled draw (the
    PU identity holds under one caption); `n_extra` further ones carry their own.
    """

    folders: Folders
    seed: int
    n_unlabeled: int
    n_paired: int
    n_extra: int
    caption_dropout: float = 0.0
    flip: bool = False
    crops: int = 1

    def unlabeled(self, step: int) -> list[Draw]:
        return [self._unlabeled_draw(step, i) for i in range(self.n_unlabeled)]

    def sensitive(self, step: int) -> list[Draw]:
        """Paired draws, then extra ones."""
        paired = [self._paired_draw(step, i) for i in range(self.n_paired)]
        return paired + [self._extra_draw(step, i) for i in range(self.n_extra)]

    def _unlabeled_draw(self, step: int, i: int) -> Draw:
        sample = _pick(self.folders.unlabeled, self.seed, 0, step * self.n_unlabeled + i)
        chance = rng(self.seed, CAPTION, step, i).random()
        return Draw(i, sample, "" if chance < self.caption_dropout else sample.caption, self._view(step, i))

    def _paired_draw(self, step: int, i: int) -> Draw:
        sample = _pick(self.folders.sensitive, self.seed, 1, step * self.n_paired + i)
        caption = self._unlabeled_draw(step, i % self.n_unlabeled).caption
        position = self.n_unlabeled + i
        return Draw(position, sample, caption, self._view(step, position))

    def _extra_draw(self, step: int, i: int) -> Draw:
        sample = _pick(captioned(self.folders.sensitive), self.seed, 2, step * self.n_extra + i)
        position = self.n_unlabeled + self.n_paired + i
        return Draw(position, sample, sample.caption, self._view(step, position), is_extra=True)

    def _view(self, step: int, position: int) -> View:
        chance = rng(self.seed, VIEW, step, position)
        return View(self.flip and chance.random() < 0.5, int(chance.integers(self.crops)))


def views(*, flip: bool, crops: int) -> list[View]:
    """All that a draw may ask for."""
    return [View(f, c) for f in ((False, True) if flip else (False,)) for c in range(crops)]


def captioned(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with a caption of their own: only these can be extra."""
    return [s for s in samples if s.caption is not None]


def noise_and_t(seed: int, step: int, position: int, shape: tuple[int, ...], timesteps: int) -> tuple[np.ndarray, int]:
    """The noise (fp32, of shape) and timestep of one sample: a pure function of its arguments, on every device."""
    chance = rng(seed, NOISE, step, position)
    return chance.standard_normal(shape, dtype=np.float32), int(chance.integers(timesteps))


def _pick(pile: Sequence[Sample], seed: int, kind: int, count: int) -> Sample:
    epoch, place = divmod(count, len(pile))
    return pile[_order(seed, kind, epoch, len(pile))[place]]


@functools.lru_cache(maxsize=8)
def _order(seed: int, kind: int, epoch: int, n: int) -> np.ndarray:
    return rng(seed, ORDER, kind, epoch).permutation(n)
