"""The files of an image folder: which are images, how often each is shown, what is left out and why, and copies."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from ..common.files import sha256
from .captions import SUFFIXES as CAPTIONS
from .captions import CaptionFiles
from .decoding import FURTHER, SUFFIXES, is_readable

JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")  # of Windows and macOS
JUNK_FOLDERS = ("__macosx", "@eadir", "$recycle.bin")
REPEATS = re.compile(r"([1-9]\d{0,2})_")  # kohya's 10_name; not 01_name, which is an order, nor 2024_name, a year
NAMED = 3  # examples in a sentence


@dataclass(frozen=True)
class Listing:
    """What an image folder holds."""

    folder: Path
    images: list[Path]
    captions: CaptionFiles
    notes: list[str]  # sentences about what is left out

    def repeats(self, image: Path) -> int:
        """Return the number in the name of the nearest folder named like kohya's `10_name` below this one, else 1."""
        for name in reversed(image.relative_to(self.folder).parts[:-1]):
            if found := REPEATS.match(name):
                return int(found[1])
        return 1


def list_folder(folder: Path, *, is_recursive: bool, apart: Mapping[Path, str]) -> Listing:
    """List the images of a folder and what else is there.

    Args:
        is_recursive: whether the images of its sub-folders belong to it.
        apart: folders that do not belong to it, wherever they lie, with the reason.
    Raises: UserError if it cannot be read or holds no images.
    """
    unread: list[str] = []
    places = {place.resolve(): why for place, why in apart.items()}
    reasons = {path: _reason(path) for path in sorted(_files(folder, places, unread, is_recursive=is_recursive))}
    images = [path for path, reason in reasons.items() if reason is None]
    captions = CaptionFiles(reasons)
    used = {path for image in images for path in captions.all_of(image)}
    left_out = Counter(reason for path, reason in reasons.items() if reason and path not in used)
    notes = [_count(left_out)] if left_out else []
    notes += [f"folders that were not read: {_some(unread)}"] if unread else []
    if not images:
        found = "".join(f" {note[0].upper()}{note[1:]}." for note in notes)
        looked = "looked for .png .jpg .jpeg .webp .bmp and others"
        raise UserError(f"{folder}: no images ({looked}). Put the images to learn from here.{found}")
    return Listing(folder, images, captions, notes)


def _files(folder: Path, apart: Mapping[Path, str], unread: list[str], *, is_recursive: bool) -> Iterator[Path]:
    """Yield all files but a system's own. Args: unread: gets the names of sub-folders that are passed over, and why."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    def reason(path: Path) -> str | None:
        if path.name.startswith("."):
            return "hidden"
        return apart.get(path.resolve()) or (None if is_recursive else "--no-recursive")

    seen: set[str] = set()
    for place, names, files in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back, or a second one
            names.clear()
            continue
        seen.add(real)
        below = {name: reason(Path(place, name)) for name in sorted(names) if name.lower() not in JUNK_FOLDERS}
        unread += [f"{Path(place, name).relative_to(folder)} ({why})" for name, why in below.items() if why]
        names[:] = [name for name, why in below.items() if not why]
        yield from (Path(place, name) for name in files if name.lower() not in JUNK and not name.startswith("._"))


def _reason(path: Path) -> str | None:
    """Return None for an image; "" for what needs no mention; else why this file is none, with its kind."""
    suffix = path.suffix.lower()
    kind = suffix or "without a suffix"
    is_image = suffix in SUFFIXES or suffix in FURTHER
    if path.name.startswith("."):
        return f"{kind} (hidden)" if is_image else ""
    if is_image and not path.is_file():
        return f"{kind} (a link to nothing)" if path.is_symlink() else f"{kind} (no file)"
    if is_readable(suffix):
        return None
    if suffix in FURTHER:
        return f"{kind} ({FURTHER[suffix]})"
    if suffix in CAPTIONS:
        return f"{kind} (no image of that name)"
    return kind if _size(path) else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _count(left_out: Counter[str]) -> str:
    """Return `12 files were not used: 9 .heic (pip install pillow-heif), 3 .zip`."""
    total = left_out.total()
    kinds = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
    return f"{total} {'file was' if total == 1 else 'files were'} not used: {kinds}"


def copies(kinds: Mapping[str, Iterable[Path]]) -> list[str]:
    """Return sentences about images with the same bytes, within a folder and across. Args: kinds: by folder."""
    places: dict[tuple[int, str], list[tuple[str, Path]]] = defaultdict(list)
    sizes = Counter(_size(path) for paths in kinds.values() for path in paths)
    for kind, paths in kinds.items():
        for path in paths:
            if sizes[_size(path)] > 1:
                places[_size(path), sha256(path)].append((kind, path))
    groups = list(places.values())
    notes = []
    if shared := [group for group in groups if len({kind for kind, _ in group}) > 1]:
        many = "1 image is" if len(shared) == 1 else f"{len(shared)} images are"
        notes.append(f"{many} in both folders, unlabeled and sensitive: {_equal(shared)}")
    for kind in kinds:
        same = [own for group in groups if len(own := [one for one in group if one[0] == kind]) > 1]
        if extra := sum(len(own) - 1 for own in same):
            many = "1 image is a copy of another" if extra == 1 else f"{extra} images are copies of others"
            notes.append(f"{kind}: {many}: {_equal(same)}")
    return notes


def _equal(groups: list[list[tuple[str, Path]]]) -> str:
    return _some([" = ".join(f"{kind}/{path.name}" for kind, path in group) for group in groups])


def _some(names: list[str]) -> str:
    """Return the first few names in a list."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
