"""Two folders of images -> lists of samples, and each image as the model sees it. No tensors, no models."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .errors import UserError
from .randomness import CROP, SPLIT, rng

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION_SUFFIXES = (".txt", ".caption")
MAX_PIXELS = 100_000_000
HELD_OUT_SHARE = 0.1
SMALLEST_CROP = 0.8  # of the plain one's sides
STEP_PX = 64  # between the sides of buckets
MIN_HELD_OUT = 2


@dataclass(frozen=True)
class Sample:
    path: Path
    caption: str | None  # of the image itself: a file beside it, or what applies to its folder; None: none of its own


@dataclass(frozen=True)
class Folders:
    """What was found on disk."""

    unlabeled: list[Sample]
    sensitive: list[Sample]
    held_out: list[Sample]  # sensitive, never trained on
    skipped: list[str]  # one sentence for each image left out


def scan(
    unlabeled: Path,
    sensitive: Path | None,
    *,
    prompt: str | None,
    sensitive_prompt: str | None,
    skip_bad_images: bool,
    seed: int,
    exclude: Path | None = None,
) -> Folders:
    """List and check the images of both folders.

    Args:
        sensitive: may be None where the objective does not need it.
        prompt: caption of unlabeled images without a caption file.
        sensitive_prompt: the same for sensitive ones, which may also go without.
        skip_bad_images: leave out what cannot be read; otherwise that is an error.
        seed: decides which sensitive images are held out.
        exclude: text file that names unlabeled images to leave out.
    Raises: UserError naming every bad image, an empty folder, or images without any caption.
    """
    found = {"unlabeled": _images(unlabeled), "sensitive": _images(sensitive) if sensitive else []}
    left_out = _excluded(exclude, found["unlabeled"]) if exclude else set()
    found["unlabeled"] = [path for path in found["unlabeled"] if path not in left_out]
    faults = {path: fault for paths in found.values() for path in paths if (fault := _fault(path))}
    skipped = [f"{path}: {fault}" for path, fault in faults.items()]
    if skipped and not skip_bad_images:
        raise UserError("\n".join(skipped) + "\nRepair or remove these images, or leave them out: --skip-bad-images")
    good = {kind: [path for path in paths if path not in faults] for kind, paths in found.items()}
    if not good["unlabeled"] or (sensitive and not good["sensitive"]):
        raise UserError("no readable image is left:\n" + "\n".join(skipped))
    mixture = [Sample(path, caption_of(path) or prompt) for path in good["unlabeled"]]
    bare = [s.path.name for s in mixture if s.caption is None]
    if bare:
        names = ", ".join(bare[:3]) + (", …" if len(bare) > 3 else "")
        raise UserError(
            f"{unlabeled}: {len(bare)} of {len(mixture)} images have no caption ({names}). "
            "Give one for all with --prompt, or a .txt beside each."
        )
    labeled = [Sample(path, caption_of(path) or sensitive_prompt) for path in good["sensitive"]]
    trained, held_out = _hold_out(labeled, seed) if labeled else ([], [])
    return Folders(
        mixture, trained, held_out, [*skipped, *(f"{path}: --exclude names it" for path in sorted(left_out))]
    )


def _excluded(file: Path, images: list[Path]) -> set[Path]:
    """Those of images that a text file names, by their path or name. Raises: UserError for a name that fits none."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--exclude: cannot read {file}: {error}") from None
    places = {path.name: path for path in images}
    unknown = [line for line in lines if Path(line).name not in places]
    if unknown:
        raise UserError(f"--exclude: {file} names {unknown[0]}, which is not among the unlabeled images")
    if len(set(lines)) >= len(images):
        raise UserError(f"--exclude: {file} names every unlabeled image")
    return {places[Path(line).name] for line in lines}


def _images(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(f"{folder}: no images (looked for {' '.join(SUFFIXES)}). Put the images to learn from here.")
    return found


def caption_of(image: Path) -> str | None:
    """The text beside an image (`cat.txt` or `cat.caption` for `cat.png`), None where there is none or it is empty."""
    for suffix in CAPTION_SUFFIXES:
        beside = image.with_suffix(suffix)
        if beside.is_file():
            try:
                return " ".join(beside.read_text(encoding="utf-8-sig").split()) or None
            except UnicodeDecodeError:
                raise UserError(f"{beside}: not UTF-8 text. Save the caption as UTF-8.") from None
    return None


def _fault(path: Path) -> str | None:
    """Why an image cannot be used, or None. Reads the whole file: a truncated one opens well."""
    if not path.stat().st_size:
        return "empty file (0 bytes)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning; ours is below
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    return f"huge ({image.width} x {image.height} px; at most {MAX_PIXELS // 10**6} megapixels)"
                image.load()
    except Image.DecompressionBombError:
        return f"huge (at most {MAX_PIXELS // 10**6} megapixels)"
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble on
        return f"cannot be read ({error})"
    return None


def _hold_out(samples: list[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """Part a tenth off, at least two. Raises: UserError if nothing would be left to train on."""
    n = max(MIN_HELD_OUT, round(HELD_OUT_SHARE * len(samples)))
    if len(samples) <= n:
        raise UserError(
            f"{samples[0].path.parent}: {len(samples)} sensitive images; at least {MIN_HELD_OUT + 1} are needed, "
            f"as {MIN_HELD_OUT} are held out to see whether unlearning carries over."
        )
    order = rng(seed, SPLIT).permutation(len(samples))
    kept, out = sorted(order[n:]), sorted(order[:n])
    return [samples[i] for i in kept], [samples[i] for i in out]


@dataclass(frozen=True)
class View:
    """One of the versions in which an image is seen. crop 0 is the plain one: the largest part in the middle."""

    flip: bool = False
    crop: int = 0


PLAIN = View()


def training_size(path: Path, resolution: int, *, bucket: bool) -> tuple[int, int]:
    """Width and height in which an image is trained, by its own size.

    Args:
        resolution: side of the square whose area is the most that is trained.
        bucket: keep the shape, in steps of 64 px and without scaling up; otherwise the square.
    """
    if not bucket:
        return resolution, resolution
    with Image.open(path) as image:
        width, height = image.size
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return bucket_of(*((height, width) if is_turned else (width, height)), resolution)


def bucket_of(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The size, sides multiples of 64, of at most resolution's area and no larger than the image, nearest in shape.

    An image with a side below 64 px is scaled up to it: there is nothing smaller.
    """
    scale = min(1.0, resolution / math.sqrt(width * height))
    across, down = (_sides(side, scale, resolution) for side in (width, height))
    most = max(resolution, STEP_PX) ** 2
    fitting = [(w, h) for w in across for h in down if w * h <= most]
    return min(fitting, key=lambda size: (abs(math.log(size[0] / size[1] * height / width)), -size[0] * size[1]))


def _sides(side: int, scale: float, resolution: int) -> list[int]:
    """The multiples of 64 around a scaled side that the image and the resolution's area can bear, one at least."""
    longest = resolution**2 // STEP_PX
    below = min(int(side * scale), longest) // STEP_PX * STEP_PX
    return [n for n in (below, below + STEP_PX) if STEP_PX <= n <= min(side, longest)] or [STEP_PX]


def read_image(path: Path, size: tuple[int, int], view: View = PLAIN) -> np.ndarray:
    """An image as the model sees it: upright, RGB on white, its middle (or a crop) scaled to size.

    Args: size: width, height in pixels.
    Returns: [height, width, 3] uint8.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            upright = _rgb(ImageOps.exif_transpose(image))
    seen = upright.resize(size, Image.Resampling.LANCZOS, box=_box(*upright.size, size, view.crop))
    return np.asarray(ImageOps.mirror(seen) if view.flip else seen)


def _box(width: int, height: int, size: tuple[int, int], crop: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a crop of size's shape: the middle for 0, else a smaller one by its number."""
    scale, x, y = min(width / size[0], height / size[1]), 0.5, 0.5
    if crop:
        share, x, y = rng(CROP, crop).random(3)
        scale *= SMALLEST_CROP + (1 - SMALLEST_CROP) * share
    across, down = scale * size[0], scale * size[1]
    left, top = (width - across) * x, (height - down) * y
    return left, top, left + across, top + down


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # 16-bit grey: convert() would clip, not scale
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
