"""Captions: found beside images whatever the case of their names, decoded, cleaned, and put together as kohya does."""

import codecs
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..common.errors import UserError
from ..common.random_streams import SHUFFLE, rng

SUFFIXES = (".txt", ".caption")
ORDERS = 8  # of a caption's tags, each encoded once; the first is as written
_BOMS = {  # UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8",
}
_JOINERS = "\u200c\u200d"  # zero-width, but part of how Persian, Hindi and emoji are written
# what user interfaces read out of a prompt: (word:1.2), [word], <lora:x:1>, {a|b}, __wild__, BREAK
_SYNTAX = re.compile(
    r"(?<!\\)\([^()]*:\s*[-+]?\d*\.?\d+\s*\)|(?<!\\)\[[^\[\]]+\]|<(?:lora|lyco|hypernet|embedding):[^<>]+>"
    r"|\{[^{}]*\|[^{}]*\}|(?<!\w)__[^\s_](?:[^\s,]*[^\s_])?__(?!\w)|\bBREAK\b"
)


class CaptionFiles:
    """The caption files of a folder, found by their image."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = {path for path in files if path.suffix.lower() in SUFFIXES and path.is_file()}
        self._alike = {_alike(path): path for path in sorted(self._files, reverse=True)}

    def all_of(self, image: Path) -> list[Path]:
        """Return `cat.txt` and `cat.caption` for `cat.png`; one in capitals where there is none of the same case."""
        places = [image.with_suffix(suffix) for suffix in SUFFIXES]
        found = [path if path in self._files else self._alike.get(_alike(path)) for path in places]
        return [path for path in found if path]

    def of(self, image: Path) -> Path | None:
        """Return the caption file that is read."""
        return next(iter(self.all_of(image)), None)


def _alike(path: Path) -> tuple[Path, str]:
    """Return what stays the same in capitals, and where macOS has written an accent as a letter of its own."""
    return path.parent, unicodedata.normalize("NFC", path.name).casefold()


def caption_of(image: Path) -> str | None:
    """Read the caption file beside one image; None if missing or empty."""
    file = CaptionFiles(image.parent.iterdir()).of(image)
    return read_caption(file)[0] if file else None


def read_caption(file: Path) -> tuple[str | None, list[str]]:
    """Read a caption file.

    Returns: (its text in one line, or None where it is empty; what was cleaned).
    Raises: UserError if it is not Unicode text.
    """
    try:
        text, encoding = _decode(file.read_bytes())
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text, nor UTF-16. Save the caption as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    clean, cleaned = _clean(text)
    return clean or None, [*([encoding] if encoding else []), *cleaned]


def _decode(data: bytes) -> tuple[str, str | None]:
    """Return the text and, where it is not UTF-8, its encoding."""
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            return data.decode(encoding), None if encoding == "utf-8" else encoding.upper()
    if utf16 := _utf16_without_bom(data):
        return data.decode(utf16), "UTF-16"
    return data.decode("utf-8"), None


def _utf16_without_bom(data: bytes) -> str | None:
    """Return utf-16-le or -be where every other byte is a control character, as in no other encoding of text."""
    even, odd = (sum(byte < 9 or 14 <= byte < 32 for byte in data[i::2]) / max(1, len(data) // 2) for i in (0, 1))
    if len(data) % 2 or max(even, odd) < 0.5 or min(even, odd) > 0.3:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _clean(text: str) -> tuple[str, list[str]]:
    """Return the text in one line, and what was taken out of it."""
    cleaned = []
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf" or c in _JOINERS)
    if visible != text.removeprefix("\ufeff"):
        cleaned.append("invisible characters")
    spoken = "".join(c for c in visible if c.isspace() or (unicodedata.category(c) != "Cc" and c != "\ufffd"))
    if spoken != visible:
        cleaned.append("control or broken characters")
    line = " ".join(spoken.split())
    tags = [tag.strip() for tag in line.split(",")]
    if "" in tags[:-1]:  # one comma at the end is a habit
        cleaned.append("empty tags")
        line = ", ".join(tag for tag in tags if tag)
    return "" if line.strip(", ") == "" else line, cleaned


def with_affixes(caption: str, prefix: str | None, suffix: str | None) -> str:
    """Return a caption with the prefix and suffix that all have, a space between, as kohya joins them."""
    return " ".join(part for part in (prefix, caption, suffix) if part)


def reordered(caption: str, order: int, *, keep: int, seed: int) -> str:
    """Return a caption with its tags in one of ORDERS orders, the first `keep` in place; order 0: as written."""
    tags = [tag.strip() for tag in caption.split(",")]
    loose = tags[keep:]
    if order == 0 or len(loose) < 2:
        return caption
    places = rng(seed, SHUFFLE, order, len(loose)).permutation(len(loose))
    return ", ".join([*tags[:keep], *(loose[i] for i in places)])


def describe_syntax(captions: Iterable[str]) -> str | None:
    """Return a sentence about captions with weights and other marks that user interfaces act on; None without any."""
    found = [(caption, mark[0]) for caption in sorted(set(captions)) if (mark := _SYNTAX.search(caption))]
    if not found:
        return None
    marks = ", ".join(list(dict.fromkeys(mark for _, mark in found))[:3])
    return (
        f"{len(found)} {'caption has' if len(found) == 1 else 'captions have'} marks of user interfaces, such as "
        f"{marks}: they are learned as plain letters here, not as weights or choices"
    )


def describe_cleaning(cleaned: Sequence[str]) -> str | None:
    """Return a sentence that counts what was cleaned in a folder's caption files; None without any."""
    if not cleaned:
        return None
    counts = {what: cleaned.count(what) for what in dict.fromkeys(cleaned)}
    words = {
        what: f"{n} read as {what}" if what.startswith("UTF") else f"{n} with {what}" for what, n in counts.items()
    }
    return f"caption files that were cleaned: {', '.join(words.values())}"
