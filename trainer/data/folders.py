"""Two folders of images become lists of samples: what is read, held out, or skipped and why."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..common.errors import UserError
from ..common.random_streams import SPLIT, rng
from .images import SUFFIXES

CAPTION_SUFFIXES = (".txt", ".caption")
MAX_PIXELS = 100_000_000
HELD_OUT_SHARE = 0.1
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
    """Return the images that a text file names, by path or name. Raises: UserError for an unknown name."""
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
    """Read the caption file of an image (`cat.txt` or `cat.caption` for `cat.png`); None if missing or empty."""
    for suffix in CAPTION_SUFFIXES:
        beside = image.with_suffix(suffix)
        if beside.is_file():
            try:
                return " ".join(beside.read_text(encoding="utf-8-sig").split()) or None
            except UnicodeDecodeError:
                raise UserError(f"{beside}: not UTF-8 text. Save the caption as UTF-8.") from None
    return None


def _fault(path: Path) -> str | None:
    """Say why an image cannot be used, or None. Reads the whole file: a truncated one opens without error."""
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
    """Split off a tenth, at least two. Raises: UserError if nothing would be left to train on."""
    n = max(MIN_HELD_OUT, round(HELD_OUT_SHARE * len(samples)))
    if len(samples) <= n:
        raise UserError(
            f"{samples[0].path.parent}: {len(samples)} sensitive images; at least {MIN_HELD_OUT + 1} are needed, "
            f"as {MIN_HELD_OUT} are held out to see whether unlearning carries over."
        )
    order = rng(seed, SPLIT).permutation(len(samples))
    kept, out = sorted(order[n:]), sorted(order[:n])
    return [samples[i] for i in kept], [samples[i] for i in out]
