"""How near pictures are to real normal ones, and how far a prompt's pictures moved that should have stayed."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import read_images
from .statistics import components, frechet_distance, kernel_distance

Features = Callable[[Sequence[Path]], np.ndarray]  # image files -> [n, d]


@dataclass(frozen=True)
class Distance:
    """Of one set of pictures to real images. Lower is better; comparable only under the same name."""

    name: str
    value: float


def distances(pictures: dict[str, list[Path]], real: Sequence[Path], features: Features, name: str) -> dict:
    """Distances of each set to the real images on an encoder's features, all in the same directions.

    Args: name: of the features, for people.
    Returns: set -> list of Distance; empty where there are too few images to measure.
    """
    of_real = features(real)
    centre = of_real.mean(0)
    n = min(len(paths) for paths in pictures.values())
    axes = components(of_real, n)
    if axes is None:
        return {}
    onto = lambda found: (found - centre) @ axes  # noqa: E731
    result = {}
    for kind, paths in pictures.items():
        found = onto(features(paths))
        frechet = frechet_distance(found, onto(of_real))
        kernel = kernel_distance(found, onto(of_real))
        label = f"on {axes.shape[1]} components of {name}"
        result[kind] = [Distance(f"Fréchet distance {label}", frechet), Distance(f"kernel distance {label}", kernel)]
    return result


def inception(pictures: dict[str, list[Path]], real: Sequence[Path], *, on_gpu: bool) -> tuple[dict, str | None]:
    """FID and KID by torch-fidelity, where it is installed and its network can be had.

    Args:
        pictures: set -> files, all square and of one size.
        real: normal images of any size; the square in the middle of each is scaled to the pictures' size.
    Returns: (set -> list of Distance, why there are none).
    """
    try:
        from torch_fidelity import calculate_metrics
    except ImportError:
        return {}, "FID and KID need a package: pip install torch-fidelity"
    result = {}
    for kind, made in pictures.items():
        with Image.open(made[0]) as picture:
            size_px = picture.width
        try:
            with _folder_of(made) as one, _folder_of(real) as other:
                found = calculate_metrics(
                    input1=one,
                    input2=other,
                    fid=True,
                    kid=True,
                    kid_subset_size=min(len(made), len(real), 1000),
                    samples_find_ext="png,jpg,jpeg,webp,bmp",
                    samples_resize_and_crop=size_px,
                    verbose=False,
                    cuda=on_gpu,
                )
        except Exception as error:  # no network for its weights, too few images
            return {}, f"FID and KID could not be measured ({str(error).splitlines()[0]})"
        result[kind] = [
            Distance(_fid_name(min(len(made), len(real))), float(found["frechet_inception_distance"])),
            Distance("KID", float(found["kernel_inception_distance_mean"])),
        ]
    return result, None


FEW = 2048  # Inception's features: below as many images their covariance has no inverse, and FID is biased upwards


def _fid_name(images: int) -> str:
    """Name the FID with what it is worth."""
    if images >= FEW:
        return "FID"
    return f"FID from {images} images (biased upwards below {FEW}: compare only with others of {images}; KID is fairer)"


@contextlib.contextmanager
def _folder_of(files: Sequence[Path]) -> Iterator[str]:
    """These images and no others: theirs may hold pictures of other seeds, and captions."""
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(files):
            shutil.copyfile(file, Path(folder) / f"{i:06d}{file.suffix.lower()}")
        yield folder


def pixel_drift(before: Sequence[Path], after: Sequence[Path]) -> float:
    """Mean absolute difference of a pixel between pictures of the same seeds, 0 to 1."""
    return float(np.abs(read_images(before).astype(np.float32) - read_images(after)).mean() / 255)


def latent_drift(before: np.ndarray, after: np.ndarray) -> float:
    """Mean over seeds of |after - before| / |before|. Args: [n, d] latents of the pictures."""
    return float((np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)).mean())
