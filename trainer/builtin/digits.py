"""The built-in data: 5,000 real MNIST digits in three fixed parts. Even digits are normal, odd ones sensitive."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

FILE = Path(__file__).parent / "digits.npz"
PARTS = ("model", "folders", "held_out")
PROMPT = "a photo of a digit"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME_PROMPTS = "a photo of the digit three | a photo of the digit seven"  # as in config.toml: no secret of anybody's
SIZE_PX = 64
SENSITIVE_SHARE = 0.2


@dataclass(frozen=True)
class Digits:
    images: np.ndarray  # [n, 28, 28] uint8, white on black
    labels: np.ndarray  # [n] uint8, 0..9


@functools.cache
def _arrays() -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as file:
        return {key: file[key] for key in ("images", "labels", "part")}


def load(part: str) -> Digits:
    """Load one part: `model` (3,500: base model, classifier), `folders` (500) or `held_out` (1,000, to measure)."""
    arrays = _arrays()
    chosen = arrays["part"] == PARTS.index(part)
    return Digits(arrays["images"][chosen], arrays["labels"][chosen])


def render(images: np.ndarray) -> np.ndarray:
    """Enlarge [n, 28, 28] digits to [n, 64, 64] uint8: a border of two pixels, then bicubic interpolation."""
    bordered = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    size = (SIZE_PX, SIZE_PX)
    return np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in bordered])


def is_sensitive(labels: np.ndarray) -> np.ndarray:
    return labels % 2 == 1


def own_prompt(label: int) -> str:
    return f"a photo of the digit {NAMES[label]}"


def choose(n_unlabeled: int, n_sensitive: int, *, normal_only: bool = False) -> tuple[Digits, Digits]:
    """Choose the unlabeled digits (a fifth of them sensitive) and the sensitive ones: classes balanced, no overlap.

    Args:
        normal_only: leave the hidden sensitive digits out, which is impossible with real data: an upper reference
            "what clean data would give".
    Returns: (unlabeled in a fixed mixed order, sensitive).
    Raises: ValueError if the 500 digits of this part do not suffice.
    """
    pool = load("folders")
    n_hidden = round(n_unlabeled * SENSITIVE_SHARE)
    odd = _round_robin(pool.labels, is_sensitive(pool.labels))
    even = _round_robin(pool.labels, ~is_sensitive(pool.labels))
    n_even = n_unlabeled - n_hidden
    if n_even > len(even) or n_hidden + n_sensitive > len(odd):
        raise ValueError(
            f"{n_unlabeled} unlabeled and {n_sensitive} sensitive digits asked for, "
            f"there are {len(even)} even and {len(odd)} odd ones"
        )
    hidden = odd[:0] if normal_only else odd[:n_hidden]
    mixture = np.random.default_rng(0).permutation(np.concatenate([even[:n_even], hidden]))
    labeled = odd[n_hidden : n_hidden + n_sensitive]
    return Digits(pool.images[mixture], pool.labels[mixture]), Digits(pool.images[labeled], pool.labels[labeled])


def _round_robin(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Indices where mask holds, ordered so that every prefix is balanced over the classes."""
    rank = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    indices = np.flatnonzero(mask)
    return indices[np.lexsort((labels[indices], rank[indices]))]


def write_folders(
    root: Path, n_unlabeled: int = 400, n_sensitive: int = 100, *, normal_only: bool = False
) -> dict[str, Path]:
    """Write PNG folders `unlabeled`, `sensitive` and `sensitive_captioned` below root, unless they exist.

    The third holds the images of the second, each with a `.txt` naming its digit.

    Returns: the three folders by name.
    """
    unlabeled, sensitive = choose(n_unlabeled, n_sensitive, normal_only=normal_only)
    folders = {name: root / name for name in ("unlabeled", "sensitive", "sensitive_captioned")}
    _write(folders["unlabeled"], unlabeled)
    _write(folders["sensitive"], sensitive)
    _write(folders["sensitive_captioned"], sensitive, captions=True)
    return folders


def _write(folder: Path, digits: Digits, captions: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, label) in enumerate(zip(render(digits.images), digits.labels, strict=True)):
        target = folder / f"{i:04d}.png"
        if not target.exists():
            Image.fromarray(image).save(target)
        if captions:
            target.with_suffix(".txt").write_text(own_prompt(label), encoding="utf-8")
