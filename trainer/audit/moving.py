"""Move images out of the unlabeled folder, and back: the manifest in the folder moved to names where each came from."""

import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..common.errors import UserError
from ..common.files import write_text
from ..common.wording import counted
from ..data.captions import CaptionFiles

MANIFEST = "moved-by-audit.json"


def move(images: Sequence[Path], source: Path, target: Path, *, apply: bool) -> str:
    """Move images with their captions to the same places below target. Never deletes, never overwrites.

    Args:
        source: the folder that the images lie in, or in folders below.
        apply: False only counts the files.
    Returns: what was done, or would be. Raises: UserError if a file of that name exists in target.
    """
    moves = {path: target / path.relative_to(source) for path in _with_captions(images)}
    existing = [place.name for place in moves.values() if place.exists()]
    if existing:
        raise UserError(f"--move-to: {target} already has {', '.join(existing[:3])}; nothing was moved")
    if not apply:
        return f"would move {counted(len(moves), 'file')} to {target}; look at the contact sheet, then add --apply"
    _save_manifest(target, {**_read_manifest(target), **{place: path.absolute() for path, place in moves.items()}})
    _move_all(moves)
    moved = f"moved {counted(len(moves), 'file')} to {target}"
    return f'{moved}; to move them back: python -m trainer audit --undo "{target}"'


def undo(folder: Path) -> str:
    """Move everything that `move` put into a folder back to where it came from.

    Returns: what was done.
    Raises: UserError if the folder has no manifest, or if a file of that name exists at one of the old places.
    """
    places = _read_manifest(folder)
    if not places:
        raise UserError(f"--undo: {folder} holds no images that audit --apply moved there (no {MANIFEST})")
    moves = {now: before for now, before in places.items() if now.exists()}
    existing = [str(before) for before in moves.values() if before.exists()]
    if existing:
        raise UserError(f"--undo: {', '.join(existing[:3])} exists; nothing was moved back")
    _move_all(moves)
    (folder / MANIFEST).unlink()
    gone = len(places) - len(moves)
    left = f"; {gone} {'is' if gone == 1 else 'are'} no longer there" if gone else ""
    return f"moved {counted(len(moves), 'file')} back from {folder}{left}"


def _with_captions(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    captions_in = functools.cache(lambda folder: CaptionFiles(folder.iterdir()))
    for image in images:
        files += [image, *captions_in(image.parent).all_of(image)]
    return list(dict.fromkeys(files))  # a.png and a.jpg share a.txt


def _move_all(moves: dict[Path, Path]) -> None:
    for path, place in moves.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)


def _save_manifest(target: Path, origins: dict[Path, Path]) -> None:
    """Write before anything moves: what a kill leaves half done can be undone, too."""
    entries = {place.relative_to(target).as_posix(): str(origin) for place, origin in origins.items()}
    write_text(target / MANIFEST, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


def _read_manifest(folder: Path) -> dict[Path, Path]:
    """Return where each file in the folder came from; empty without a manifest. Raises: UserError if it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        places = {folder / name: Path(origin) for name, origin in entries.items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Move the images back by hand.") from None
    if outside := [name for name in entries if not _is_below(name)]:
        raise UserError(f"{path}: {outside[0]!r} is no file of this folder; nothing was moved. Was the file changed?")
    return places


def _is_below(name: str) -> bool:
    """Whether a name stays in the folder that it is joined to, on every system: a manifest may come from elsewhere."""
    kinds = PurePosixPath(name), PureWindowsPath(name)
    return all(kind.parts and not kind.anchor and ".." not in kind.parts for kind in kinds)
