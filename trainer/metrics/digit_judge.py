"""The judge of the built-in default, and how far its pictures are from real digits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..builtin import classifier, digits
from ..data.images import images_in, read_images, save_images
from .judges import Judge, accuracy
from .statistics import frechet_distance, wilson


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


class DigitJudge:
    """The built-in classifier: even digits are normal. Distances are to real even digits nothing was trained on."""

    def __init__(self) -> None:
        self._classify, self._model = classifier.classify, classifier.load()
        held_out = digits.load("held_out")
        self._is_sensitive = digits.is_sensitive(held_out.labels)
        self.names = digits.NAMES
        self._found, features = self._read(digits.render(held_out.images))
        self.real_features = features[~self._is_sensitive]

    def _read(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found, features = self._classify(self._model, torch.from_numpy(images))
        return found.numpy(), features.double().numpy()

    def read(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Args: images: [n, 64, 64, 3] uint8. Returns: (digit [n], features [n, 64])."""
        return self._read(images.mean(-1).round().astype(np.uint8))

    def rate(self, images: np.ndarray) -> Rate:
        """Args: images: [n, 64, 64, 3] uint8."""
        found, features = self.read(images)
        enough = len(images) > 2 * features.shape[1]  # fewer pictures than features make a singular covariance
        return self._count(found, frechet_distance(features, self.real_features) if enough else None)

    def ceiling(self) -> Rate:
        return self._count(self._found[~self._is_sensitive], None)

    def _count(self, found: np.ndarray, frechet: float | None) -> Rate:
        per_class = {name: int((found == i).sum()) for i, name in enumerate(self.names)}
        return Rate(int((found % 2 == 0).sum()), len(found), per_class, frechet)

    def judge(self) -> Judge:
        """As one that reads files."""
        return Judge(
            "the built-in digit classifier (even is normal)",
            lambda paths: self.read(read_images(paths))[0] % 2 == 0,
            accuracy(self._found % 2 == 0, self._is_sensitive),
        )


def write_real_digits(folder: Path) -> list[Path]:
    """The held-out even digits as files, where they are not there yet."""
    held_out = digits.load("held_out")
    images = digits.render(held_out.images[~digits.is_sensitive(held_out.labels)])
    paths = images_in(folder)
    return paths if len(paths) == len(images) else save_images(images, folder, range(len(images)))
