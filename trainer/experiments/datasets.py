"""The paper's datasets as folders of PNGs: unlabeled, sensitive, and images to measure with.

Downloaded and read by torchvision; `digits` ships with the project. They are written as
folders because the trainer reads folders, and so that anyone can look at them.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..builtin import digits
from ..common.errors import UserError

SPLIT_SEED = 0  # the same images in every run: objectives and seeds are compared on equal data


class Images(Protocol):
    """Images by number."""

    def __getitem__(self, i: int, /) -> Any:
        """Return one: [h, w] or [h, w, 3] uint8, or a PIL image."""


@dataclass(frozen=True)
class Labeled:
    """Images with their classes, read when asked for: CelebA holds 200,000."""

    images: Images
    labels: np.ndarray  # [n]

    def image(self, i: int) -> Image.Image:
        found = self.images[i]
        return found if isinstance(found, Image.Image) else Image.fromarray(np.asarray(found))


@dataclass(frozen=True)
class Counts:
    unlabeled_normal: int
    unlabeled_sensitive: int
    sensitive: int
    test: int  # of each kind, for judges and distances

    @property
    def prior(self) -> float:
        return self.unlabeled_sensitive / (self.unlabeled_normal + self.unlabeled_sensitive)


@dataclass(frozen=True)
class Selection:
    """What an experiment draws from a dataset."""

    normal: Sequence[int]  # classes
    sensitive: Sequence[int]
    counts: Counts
    size_px: int
    versions: int = 1  # of each image to train on, a little turned, scaled and moved: few are else learned by heart


def load(name: str, root: Path, *, train: bool) -> Labeled:
    """Load one split of a dataset. Raises: UserError where torchvision or the download is missing."""
    if name == "digits":
        parts = [digits.load(part) for part in (("model", "folders") if train else ("held_out",))]
        return Labeled(_bordered(np.concatenate([p.images for p in parts])), np.concatenate([p.labels for p in parts]))
    try:
        from torchvision import datasets
    except ImportError:
        raise UserError(f"{name}: torchvision reads this dataset. Install the one that fits your torch") from None
    try:
        if name == "mnist":
            found = datasets.MNIST(root, train=train, download=True)
            return Labeled(_bordered(found.data.numpy()), found.targets.numpy())
        if name == "cifar10":
            found = datasets.CIFAR10(root, train=train, download=True)
            return Labeled(found.data, np.array(found.targets))
        if name == "stl10":
            found = datasets.STL10(root, split="train" if train else "test", download=True)
            return Labeled(found.data.transpose(0, 2, 3, 1), found.labels)
        if name == "celeba":
            found = datasets.CelebA(root, split="train" if train else "test", target_type="attr", download=True)
            male = found.attr_names.index("Male")
            return Labeled(_Photos(found), found.attr[:, male].numpy())
    except (OSError, RuntimeError) as error:  # no network, a damaged or missing file
        raise UserError(f"{name}: cannot be had ({str(error).splitlines()[0]}); put its files into {root}") from None
    raise UserError(f"{name}: no such dataset")


def _bordered(images: np.ndarray) -> np.ndarray:
    """Enlarge MNIST's 28 px to 32: sizes that halve well, and room to turn a digit."""
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))


@dataclass(frozen=True)
class _Photos:
    """CelebA's pictures, opened one by one."""

    dataset: Sequence

    def __getitem__(self, i: int) -> Image.Image:
        return self.dataset[i][0]


def write_folders(name: str, source: Path, root: Path, drawn: Selection) -> dict[str, Path]:
    """Draw the images of an experiment and write those that do not exist yet.

    Args:
        source: where the dataset's own files are.
    Returns: unlabeled and sensitive (to train on), normal and labeled (to measure with; labeled/normal is normal).
    Raises: UserError if the dataset has too few images.
    """
    folders = {"unlabeled": root / "unlabeled", "sensitive": root / "sensitive"}
    folders |= {"labeled": root / "labeled", "normal": root / "labeled" / "normal"}
    rng = np.random.default_rng(SPLIT_SEED)
    train = load(name, source, train=True)
    of_normal, of_sensitive = (_indices(train, kind, rng) for kind in (drawn.normal, drawn.sensitive))
    counts, size_px = drawn.counts, drawn.size_px
    n, hidden = counts.unlabeled_normal, counts.unlabeled_sensitive
    _enough(name, "normal", n, len(of_normal))
    _enough(name, "sensitive", hidden + counts.sensitive, len(of_sensitive))
    _write(
        train, rng.permutation([*of_normal[:n], *of_sensitive[:hidden]]), folders["unlabeled"], size_px, drawn.versions
    )
    _write(train, of_sensitive[hidden : hidden + counts.sensitive], folders["sensitive"], size_px, drawn.versions)
    test = load(name, source, train=False)
    for kind, classes in (("normal", drawn.normal), ("sensitive", drawn.sensitive)):
        _write(test, _indices(test, classes, rng)[: counts.test], root / "labeled" / kind, size_px)
    return folders


def _indices(data: Labeled, classes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.flatnonzero(np.isin(data.labels, classes)))


def _enough(name: str, kind: str, wanted: int, found: int) -> None:
    if wanted > found:
        raise UserError(f"{name}: {wanted} {kind} images are wanted, it has {found}")


def _write(data: Labeled, indices: np.ndarray, folder: Path, size_px: int, versions: int = 1) -> None:
    """Write images as 00000.png, …, so that names tell nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, (version, i) in enumerate(itertools.product(range(versions), indices)):
        path = folder / f"{place:05d}.png"
        if not path.exists():
            _square(_varied(data.image(int(i)), version, int(i)), size_px).save(path)


def _varied(image: Image.Image, version: int, number: int) -> Image.Image:
    """Vary an image: turn by up to 15 degrees, scale by a tenth, move by a sixteenth; version 0 is the image itself."""
    if version == 0:
        return image
    chance = np.random.default_rng([SPLIT_SEED, version, number])
    angle, scale = np.deg2rad(chance.uniform(-15, 15)), chance.uniform(0.9, 1.1)
    middle = np.array(image.size) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    shift = middle - turn @ (middle + chance.uniform(-1, 1, 2) * np.array(image.size) / 16)
    rows = np.column_stack([turn, shift])
    return image.transform(image.size, Image.Transform.AFFINE, rows.ravel().tolist(), Image.Resampling.BICUBIC)


def _square(image: Image.Image, size_px: int) -> Image.Image:
    """Cut the largest square in the middle, scaled to size_px."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return image if side == size_px else image.resize((size_px, size_px), Image.Resampling.LANCZOS)
