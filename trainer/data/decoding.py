"""An image file of any kind becomes an RGB image as people see it: first frame, upright, in sRGB, on white."""

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from PIL import ExifTags, Image, ImageCms, features

# Read by content, whatever the name says. Not EPS, for which Pillow starts another program, nor PDF or video.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "HEIF", "JXL", "JPEG2000", "PPM", "TGA")
SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
SUFFIXES += (".jp2", ".ppm", ".pgm", ".tga")
FURTHER = {  # suffix -> what reads it where it is installed
    ".avif": "pip install --upgrade pillow",
    ".heic": "pip install pillow-heif",
    ".heif": "pip install pillow-heif",
    ".hif": "pip install pillow-heif",
    ".jxl": "pip install pillow-jxl-plugin",
}
PLUGINS = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL"}
GAP = 2  # Pillow's reducing_gap: what is averaged first is still so much larger than what Lanczos makes of it
MAX_PIXELS = 100_000_000
TURNS = {  # EXIF orientation -> how the image becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BLACK_POINT_COMPENSATION = 0x2000  # Pillow has no name for it before 10.3
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of an ICC profile -> Pillow's mode


@dataclass(frozen=True)
class Decoded:
    """An image file's content, and what of the file could not be used."""

    image: Image.Image  # RGB
    ignored: tuple[str, ...] = ()


def is_readable(suffix: str) -> bool:
    """Return whether files of this suffix can be read here."""
    if suffix in PLUGINS:
        return PLUGINS[suffix] in _formats()
    return suffix in SUFFIXES or (suffix == ".avif" and bool(features.check("avif")))


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return those of FORMATS that can be opened here, with the plugins for Pillow that are installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image of one of FORMATS, without a word of Pillow's about sizes or metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=_formats()) as image:
            yield image


def upright_size(path: Path) -> tuple[int, int]:
    """Return the width and height in which an image is seen."""
    with open_image(path) as image:
        width, height = image.size
        return (height, width) if (_orientation(image) or 1) >= 5 else (width, height)


def decode(path: Path, size: tuple[int, int] | None = None) -> Decoded:
    """Read an image file.

    Args: size: what the image will be scaled down to: a large one with a colour profile is brought nearer to it before
        its colours are converted, which takes a second for a camera's.
    Raises: whatever Pillow's decoders stumble on, see `fault`.
    """
    with open_image(path) as image:
        image.load()
        orientation, profile = _orientation(image), image.info.get("icc_profile")
        is_void = image.format in ("BMP", "DIB", "TGA") and _is_void(image)
        upright = image.transpose(TURNS[orientation]) if orientation in TURNS else image
        upright.info = image.info
        alpha = None if is_void else _alpha(upright)
        colours = _eight_bits(upright)
        converted = None
        if profile or colours.mode == "LAB":
            if size and (factor := min(colours.width // size[0], colours.height // size[1]) // GAP) > 1:
                colours, alpha = colours.reduce(factor), alpha and alpha.reduce(factor)
            converted = _to_srgb(colours, profile)
        found = converted or colours
        found = found if found.mode == "RGB" else found.convert("RGB")
        ignored = ["the EXIF orientation"] if orientation is None else []
        ignored += ["the colour profile"] if profile and converted is None else []
        return Decoded(found if alpha is None else _on_white(found, alpha), tuple(ignored))


def fault(path: Path) -> tuple[str | None, tuple[str, ...]]:
    """Read the whole file, as training will: a truncated one opens without error.

    Returns: (why it cannot be used or None, what of it is ignored).
    """
    most = f"at most {MAX_PIXELS // 10**6} megapixels"
    try:
        if not path.stat().st_size:
            return "empty file (0 bytes)", ()
        with open_image(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"huge ({image.width} x {image.height} px; {most})", ()
        upright_size(path)
        return None, decode(path, (64, 64)).ignored
    except Image.DecompressionBombError:
        return f"huge ({most})", ()
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble on
        return f"cannot be read ({error or type(error).__name__})", ()


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 where there is none; None where the EXIF data is damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(found) if int(found) in TURNS else 1
    except Exception:  # SyntaxError, struct.error, … : it is parsed only now
        return None


def _alpha(image: Image.Image) -> Image.Image | None:
    """Return the transparency [L], None if every pixel is opaque by the image's kind."""
    has_key = "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or has_key:
        return image.convert("LA" if image.mode == "La" else "RGBA").getchannel("A")
    return None


def _is_void(image: Image.Image) -> bool:
    """Whether all is transparent: in a BMP or TGA this is a fourth byte that its writer left empty."""
    return image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the colours in 8 bits without transparency: L, RGB, CMYK or LAB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # convert() would clip, not scale
        values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0, posinf=0, neginf=0)
        values = np.rint(values / _white(image.mode, values.max()) * 255)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("LA").convert("L") if image.mode == "La" else image.convert("L")
    return image.convert("RGBA").convert("RGB")


def _white(mode: str, largest: float) -> float:
    """Return the value that means white. A float image counts to 1, with highlights above it, or as integers do."""
    if mode == "F" and largest <= 2:
        return 1.0
    if mode == "F" and largest <= 255:
        return 255.0
    return 65535.0 if largest <= 65535 else 2.0**31


def _to_srgb(colours: Image.Image, profile: bytes | None) -> Image.Image | None:
    """Return the colours as sRGB [RGB]; None where the ICC profile is damaged, or of another kind of image."""
    try:
        transform, mode = _transform(profile if colours.mode != "LAB" else None)
        if mode == "RGB" and colours.mode == "L":
            colours = colours.convert("RGB")
        return ImageCms.applyTransform(colours, transform) if colours.mode == mode else None
    except Exception:  # ImageCms raises its own, and KeyError, OSError, TypeError
        return None


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes | None) -> tuple[ImageCms.ImageCmsTransform, str]:
    """Return (transform to sRGB, the mode it takes). Args: profile: None: CIE Lab."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile) if profile else ImageCms.createProfile("LAB"))
    mode = MODES[opened.profile.xcolor_space.strip()] if profile else "LAB"
    made = ImageCms.buildTransform(
        opened,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,  # with the black point, as image editors do
        flags=cast("ImageCms.Flags", BLACK_POINT_COMPENSATION),  # any number is taken
    )
    return made, mode


def _on_white(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    seen = colours.copy()
    seen.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
