"""The paper's datasets as folders of PNGs: unlabeled, sensitive, and what judges and distances need.

Downloaded and read by torchvision; `digits` ships with the project. Folders, because everything here learns from
folders, and so that anyone can look at what hides where.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..builtin import digits
from ..errors import UserError

SPLIT_SEED = 0  # the same images in every run: objectives and seeds are compared on equal data


@dataclass(frozen=True)
class Labeled:
    """Images with their classes, read when asked for: CelebA holds 200,000."""

    images: Sequence  # each [h, w] or [h, w, 3] uint8, or a PIL image
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


def load(name: str, root: Path, *, train: bool) -> Labeled:
    """One split of a dataset. Raises: UserError where torchvision or the download is missing."""
    if name == "digits":
        parts = [digits.load(part) for part in (("model", "folders") if train else ("held_out",))]
        return Labeled(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))
    try:
        from torchvision import datasets
    except ImportError:
        raise UserError(f"{name}: torchvision reads this dataset. Install the one that fits your torch") from None
    try:
        if name == "mnist":
            found = datasets.MNIST(root, train=train, download=True)
            return Labeled(found.data.numpy(), found.targets.numpy())
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


@dataclass(frozen=True)
class _Photos:
    """CelebA's pictures, opened one by one."""

    dataset: Sequence

    def __getitem__(self, i: int) -> Image.Image:
        return self.dataset[i][0]


def write_folders(
    name: str,
    source: Path,
    root: Path,
    *,
    normal: Sequence[int],
    sensitive: Sequence[int],
    counts: Counts,
    size_px: int,
) -> dict[str, Path]:
    """Draw the images of an experiment, write those that are not there yet.

    Args: source: where the dataset's own files are. normal, sensitive: classes of each kind.
    Returns: unlabeled and sensitive (to train on), normal and labeled (to measure with; labeled/normal is normal).
    Raises: UserError if the dataset has too few images.
    """
    folders = {"unlabeled": root / "unlabeled", "sensitive": root / "sensitive"}
    folders |= {"labeled": root / "labeled", "normal": root / "labeled" / "normal"}
    rng = np.random.default_rng(SPLIT_SEED)
    train = load(name, source, train=True)
    of_normal, of_sensitive = (_indices(train, kind, rng) for kind in (normal, sensitive))
    n, hidden = counts.unlabeled_normal, counts.unlabeled_sensitive
    _enough(name, "normal", n, len(of_normal))
    _enough(name, "sensitive", hidden + counts.sensitive, len(of_sensitive))
    _write(train, rng.permutation([*of_normal[:n], *of_sensitive[:hidden]]), folders["unlabeled"], size_px)
    _write(train, of_sensitive[hidden : hidden + counts.sensitive], folders["sensitive"], size_px)
    test = load(name, source, train=False)
    for kind, classes in (("normal", normal), ("sensitive", sensitive)):
        _write(test, _indices(test, classes, rng)[: counts.test], root / "labeled" / kind, size_px)
    return folders


def _indices(data: Labeled, classes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.flatnonzero(np.isin(data.labels, classes)))


def _enough(name: str, kind: str, wanted: int, found: int) -> None:
    if wanted > found:
        raise UserError(f"{name}: {wanted} {kind} images are wanted, it has {found}")


def _write(data: Labeled, indices: Sequence[int], folder: Path, size_px: int) -> None:
    """As 00000.png, …: the name tells nothing. A square from the middle, scaled down; a smaller one gets a border."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, i in enumerate(indices):
        path = folder / f"{place:05d}.png"
        if path.exists():
            continue
        image = data.image(int(i))
        _square(image, size_px).save(path)


def _square(image: Image.Image, size_px: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side >= size_px:
        return image.resize((size_px, size_px), Image.Resampling.LANCZOS) if side > size_px else image
    return ImageOps.expand(image, (size_px - side) // 2)
