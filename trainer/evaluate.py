"""Pictures before and after with the same seeds, and how many of them are not sensitive."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import lora, model
from .builtin import BUILTIN
from .config import TrainConfig
from .run_dir import RunDir
from .sample import pictures, save_grid
from .train import Emit, Trained, picture_prompt

AT_STEP = 9  # pictures during training: enough to see, few enough not to hold it up


@dataclass(frozen=True)
class Rate:
    """How many of n pictures are not sensitive, with Wilson's 95 % interval."""

    hits: int
    n: int
    per_class: dict[str, int]  # pictures of each class that the judge knows
    frechet: float | None  # distance to real normal images on the judge's features; None: too few pictures

    @property
    def share(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.n)


@dataclass(frozen=True)
class Evaluation:
    prompt: str
    before_grid: Path | None
    after_grid: Path | None
    before: Rate | None
    after: Rate | None
    ceiling: Rate | None  # the judge's rate on real normal images it never saw


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Interval of a share that holds the true one in 95 of 100 cases, also near 0 and 1. Source: Wilson 1927."""
    if n < 1:
        raise ValueError("no trials")
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two sets of features.

    Args: a, b: [n, features]. Source: Dowson and Landau 1982; on Inception's features it is called FID.
    """
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # the product of two covariances has real eigenvalues >= 0 up to rounding, so its root's trace needs no sqrtm
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0))
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum())


class DigitJudge:
    """The built-in classifier: even digits are normal. Distances are to real even digits nothing was trained on."""

    def __init__(self) -> None:
        from .builtin import classifier, digits

        self._classify, self._model = classifier.classify, classifier.load()
        held_out = digits.load("held_out")
        real = digits.render(held_out.images[~digits.is_sensitive(held_out.labels)])
        self._names = digits.NAMES
        self._real, self._real_features = self._read(real)

    def _read(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        found, features = self._classify(self._model, torch.from_numpy(images))
        return found.numpy(), features.double().numpy()

    def rate(self, images: np.ndarray) -> Rate:
        """Args: images: [n, h, w, 3] uint8."""
        found, features = self._read(images.mean(-1).round().astype(np.uint8))
        enough = len(images) > 2 * features.shape[1]  # fewer pictures than features make a singular covariance
        return self._count(found, frechet_distance(features, self._real_features) if enough else None)

    def ceiling(self) -> Rate:
        return self._count(self._real, None)

    def _count(self, found: np.ndarray, frechet: float | None) -> Rate:
        per_class = {name: int((found == i).sum()) for i, name in enumerate(self._names)}
        return Rate(int((found % 2 == 0).sum()), len(found), per_class, frechet)


def before_after(
    config: TrainConfig, trained: Trained, run_dir: RunDir, *, emit: Emit, check: Callable[[], None]
) -> Evaluation:
    """Make the pictures, save a grid of each kind, and count if a judge is there (the built-in digits)."""
    prompt = picture_prompt(config, trained.folders)
    seeds = list(range(max(config.images, config.rate_images)))
    if not seeds:
        return Evaluation(prompt, None, None, None, None, None)
    emit("phase", name="pictures")
    make = maker(config, trained, check)
    judge = DigitJudge() if config.base == BUILTIN and config.rate_images else None
    grids, rates = {}, {}
    for kind in ("before", "after"):
        if kind == "before":
            with lora.disabled(trained.unet):
                images = make(prompt, seeds)
        else:
            images = make(prompt, seeds)
        if config.images:
            grids[kind] = run_dir.samples / f"{kind}.png"
            save_grid(images[: config.images], grids[kind])
            emit("sample", kind=kind, path=str(grids[kind]), prompt=prompt)
        if judge:
            rates[kind] = judge.rate(images[: config.rate_images])
    return Evaluation(
        prompt,
        grids.get("before"),
        grids.get("after"),
        rates.get("before"),
        rates.get("after"),
        judge.ceiling() if judge else None,
    )


def picture_at_step(
    config: TrainConfig, prompt: str, run_dir: RunDir, *, emit: Emit, check: Callable[[], None]
) -> Callable[[Trained, int], None]:
    """What `train.run` calls for --sample-every: the first few of the pictures that before and after show."""
    seeds = list(range(max(1, min(config.images, AT_STEP))))

    def picture(so_far: Trained, step: int) -> None:
        path = run_dir.samples / f"step{step:06d}.png"
        save_grid(maker(config, so_far, check)(prompt, seeds), path)
        emit("sample", kind="step", step=step, path=str(path), prompt=prompt)

    return picture


def maker(config: TrainConfig, trained: Trained, check: Callable[[], None] = lambda: None) -> Callable[..., np.ndarray]:
    """A function (prompt, seeds, guidance=config's) -> pictures [n, h, w, 3] uint8 of the U-Net as it is then."""
    pipe = model.load_pipeline(trained.base, trained.unet)

    def make(prompt: str, seeds: list[int], guidance: float | None = None) -> np.ndarray:
        return pictures(
            pipe,
            prompt,
            seeds=seeds,
            resolution=config.resolution,
            steps=config.sample_steps,
            guidance=config.guidance if guidance is None else guidance,
            clip_skip=config.clip_skip,
            check=check,
        )

    return make
