"""Image files as arrays, as the model sees them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..common.files import replacing
from ..common.random_streams import CROP, rng
from .decoding import decode, is_readable, upright_size

SMALLEST_CROP = 0.8  # of the plain one's sides
STEP_PX = 64  # between the sides of buckets


@dataclass(frozen=True)
class View:
    """One version of an image: flipped or not, and which crop; crop 0 is the largest centered one."""

    flip: bool = False
    crop: int = 0


PLAIN = View()


def training_size(path: Path, resolution: int, *, bucket: bool) -> tuple[int, int]:
    """Return the width and height at which an image is trained, by its own size.

    Args:
        resolution: side of the square whose area is the most that is trained.
        bucket: keep the shape, in steps of 64 px and without scaling up; otherwise the square.
    """
    if not bucket:
        return resolution, resolution
    return bucket_of(*upright_size(path), resolution)


def bucket_of(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Return the bucket nearest in shape: sides are multiples of 64, within resolution's area and the image's size.

    An image with a side below 64 px is scaled up to it: there is nothing smaller.
    """
    scale = min(1.0, resolution / math.sqrt(width * height))
    across, down = (_sides(side, scale, resolution) for side in (width, height))
    most = max(resolution, STEP_PX) ** 2
    fitting = [(w, h) for w in across for h in down if w * h <= most]
    return min(fitting, key=lambda size: (abs(math.log(size[0] / size[1] * height / width)), -size[0] * size[1]))


def _sides(side: int, scale: float, resolution: int) -> list[int]:
    """List the multiples of 64 next to a scaled side that fit the image and the resolution's area, at least one."""
    longest = resolution**2 // STEP_PX
    below = min(int(side * scale), longest) // STEP_PX * STEP_PX
    return [n for n in (below, below + STEP_PX) if STEP_PX <= n <= min(side, longest)] or [STEP_PX]


def read_image(path: Path, size: tuple[int, int], view: View = PLAIN) -> np.ndarray:
    """Read an image as the model sees it: upright, sRGB on white, its middle (or a crop) scaled to size.

    Args: size: width, height in pixels.
    Returns: [height, width, 3] uint8.
    """
    upright = decode(path, size).image
    seen = upright.resize(size, Image.Resampling.LANCZOS, box=_box(*upright.size, size, view.crop))
    return np.asarray(ImageOps.mirror(seen) if view.flip else seen)


def _box(width: int, height: int, size: tuple[int, int], crop: int) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a crop of size's shape: centered for 0, else a smaller one by its number."""
    scale, x, y = min(width / size[0], height / size[1]), 0.5, 0.5
    if crop:
        share, x, y = rng(CROP, crop).random(3)
        scale *= SMALLEST_CROP + (1 - SMALLEST_CROP) * share
    across, down = scale * size[0], scale * size[1]
    left, top = (width - across) * x, (height - down) * y
    return left, top, left + across, top + down


def read_images(paths: Sequence[Path]) -> np.ndarray:
    """Read image files of one size. Returns: [n, height, width, 3] uint8."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(np.asarray(image.convert("RGB")))
    return np.stack(images)


def images_in(folder: Path) -> list[Path]:
    """List the images of one folder, without its sub-folders and hidden files."""
    return sorted(p for p in folder.glob("[!.]*") if is_readable(p.suffix.lower()) and p.is_file())


def save_images(images: np.ndarray, folder: Path, seeds: Sequence[int]) -> list[Path]:
    """Save one PNG for each seed. Returns: their paths."""
    paths = [folder / f"{seed:06d}.png" for seed in seeds]
    for path, image in zip(paths, images, strict=True):
        with replacing(path, durable=False) as temporary:
            Image.fromarray(image).save(temporary)
    return paths
