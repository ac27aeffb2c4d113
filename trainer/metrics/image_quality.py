"""Distances of pictures to real normal images, and the drift of pictures that unlearning should not change."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.wording import counted
from ..data.decoding import decode
from ..data.images import read_images
from .judges import Features, first_line
from .statistics import components, frechet_distance, kernel_distance


@dataclass(frozen=True)
class Distance:
    """A distance of one set of pictures to real images. Lower is better. Compare values of the same name only."""

    name: str
    value: float


def feature_distances(
    pictures: dict[str, list[Path]], real: Sequence[Path], features: Features, name: str
) -> dict[str, list[Distance]]:
    """Measure Fréchet and kernel distance of each set of pictures to real images.

    Both are measured on the real images' principal components, the same for all sets.

    Args:
        pictures: files by the name of their set.
        features: image files -> [n, d].
        name: what the features are called in the names of the distances.
    Returns: distances by set; empty if the images are too few for two components.
    """
    of_real = features(real)
    centre = of_real.mean(0)
    n = min(len(paths) for paths in pictures.values())
    axes = components(of_real, n)
    if axes is None:
        return {}
    project = lambda values: (values - centre) @ axes  # noqa: E731
    result = {}
    for kind, paths in pictures.items():
        projected = project(features(paths))
        frechet = frechet_distance(projected, project(of_real))
        kernel = kernel_distance(projected, project(of_real))
        label = f"on {axes.shape[1]} components of {name}"
        result[kind] = [Distance(f"Fréchet distance {label}", frechet), Distance(f"kernel distance {label}", kernel)]
    return result


def inception_distances(
    pictures: dict[str, list[Path]], real: Sequence[Path], *, on_gpu: bool
) -> tuple[dict[str, list[Distance]], str | None]:
    """Measure FID and KID with the package torch-fidelity, which downloads the weights of its Inception network.

    Args:
        pictures: files by the name of their set, all square and of one size.
        real: normal images of any size; the square in the middle of each is scaled to the pictures' size.
    Returns: (distances by set, None), or ({}, why they could not be measured).
    """
    try:
        from torch_fidelity import calculate_metrics
    except ImportError:
        return {}, "FID and KID need a package: pip install torch-fidelity"
    result = {}
    for kind, files in pictures.items():
        with Image.open(files[0]) as picture:
            size_px = picture.width
        try:
            with _folder_of(files) as folder, _folder_of(real) as real_folder:
                found = calculate_metrics(
                    input1=folder,
                    input2=real_folder,
                    fid=True,
                    kid=True,
                    kid_subset_size=min(len(files), len(real), 1000),
                    samples_find_ext="png",
                    samples_resize_and_crop=size_px,
                    verbose=False,
                    cuda=on_gpu,
                )
        except Exception as error:  # no network for its weights, too few images
            return {}, f"FID and KID could not be measured ({first_line(error)})"
        result[kind] = [
            Distance(_fid_name(min(len(files), len(real))), float(found["frechet_inception_distance"])),
            Distance("KID", float(found["kernel_inception_distance_mean"])),
        ]
    return result, None


FEW = 2048  # Inception's features: below as many images their covariance has no inverse, and FID is biased upwards


def _fid_name(images: int) -> str:
    """Name the FID with what it is worth."""
    if images >= FEW:
        return "FID"
    worth = f"biased upwards below {FEW}: compare only with others of {images}; KID is fairer"
    return f"FID from {counted(images, 'image')} ({worth})"


@contextlib.contextmanager
def _folder_of(files: Sequence[Path]) -> Iterator[str]:
    """Lend a folder with these images only, as PNG: torch-fidelity reads fewer kinds of file than we do, and their own
    folders may hold other pictures.
    """
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(files):
            decode(file).image.save(Path(folder) / f"{i:06d}.png", compress_level=1)
        yield folder


def pixel_drift(before: Sequence[Path], after: Sequence[Path]) -> float:
    """Return the mean absolute difference of pixel values between pictures of the same seeds, 0 to 1."""
    return float(np.abs(read_images(before).astype(np.float32) - read_images(after)).mean() / 255)


def latent_drift(before: np.ndarray, after: np.ndarray) -> float:
    """Return the mean over seeds of |after - before| / |before|. Args: before, after: [n, d] latents of pictures."""
    return float((np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)).mean())
