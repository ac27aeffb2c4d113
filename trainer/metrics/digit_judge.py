"""The judge of the built-in default: a digit classifier, and its rates on pictures and on real digits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..builtin import classifier, digits
from ..data.images import images_in, read_images, save_images
from .judges import Judge, measure_accuracy
from .statistics import frechet_distance, wilson


@dataclass(frozen=True)
class Rate:
    """The non-sensitive rate of n pictures."""

    hits: int  # pictures that the classifier calls normal
    n: int
    per_class: dict[str, int]  # number of pictures by the classifier's class
    frechet: float | None  # distance to real normal images on the classifier's features; None: too few pictures

    @property
    def share(self) -> float:
        """Return the share of normal pictures, 0 to 1."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the share: (low, high)."""
        return wilson(self.hits, self.n)


class DigitJudge:
    """The built-in digit classifier: even digits are normal. Distances are to real even digits that were held out."""

    def __init__(self) -> None:
        self._model = classifier.load()
        held_out = digits.load("held_out")
        self._is_sensitive = digits.is_sensitive(held_out.labels)
        self.names = digits.NAMES
        self._held_out = held_out.labels
        self._labels, self._features = self._classify_grey(digits.render(held_out.images))
        self.real_features = self._features[~self._is_sensitive]

    def _classify_grey(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels, features = classifier.classify(self._model, torch.from_numpy(images))
        return labels.numpy(), features.double().numpy()

    def classify(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classify pictures. Args: images: [n, 64, 64, 3] uint8. Returns: (digits [n], features [n, 64])."""
        return self._classify_grey(images.mean(-1).round().astype(np.uint8))

    def real_features_of(self, labels: Sequence[int]) -> np.ndarray:
        """Return the features of real digits that were held out, of some classes: [n, 64]."""
        return self._features[np.isin(self._held_out, labels)]

    def rate(self, images: np.ndarray) -> Rate:
        """Measure the non-sensitive rate of pictures. Args: images: [n, 64, 64, 3] uint8."""
        labels, features = self.classify(images)
        enough = len(images) > 2 * features.shape[1]  # fewer pictures than features make a singular covariance
        return self._count(labels, frechet_distance(features, self.real_features) if enough else None)

    def ceiling(self) -> Rate:
        """Return the rate on real even digits that were held out: the most that pictures can be expected to reach."""
        return self._count(self._labels[~self._is_sensitive], None)

    def _count(self, labels: np.ndarray, frechet: float | None) -> Rate:
        per_class = {name: int((labels == i).sum()) for i, name in enumerate(self.names)}
        return Rate(int((labels % 2 == 0).sum()), len(labels), per_class, frechet)

    def as_judge(self) -> Judge:
        """Return the classifier as a judge of image files, with its accuracy on held-out digits."""
        return Judge(
            "the built-in digit classifier (even is normal)",
            lambda paths: self.classify(read_images(paths))[0] % 2 == 0,
            measure_accuracy(self._labels % 2 == 0, self._is_sensitive),
        )


def write_real_digits(folder: Path) -> list[Path]:
    """Write the held-out even digits as PNG files, unless the folder has them already. Returns: their paths."""
    held_out = digits.load("held_out")
    images = digits.render(held_out.images[~digits.is_sensitive(held_out.labels)])
    paths = images_in(folder)
    return paths if len(paths) == len(images) else save_images(images, folder, range(len(images)))
