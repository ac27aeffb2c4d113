"""Make one folder of images of a graph, or of several folders: its name is a hash of its content. Knows no host.

An unchanged batch is then the same folder with the same files, which is not trained again.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from . import result_cache

NAME = 32  # hexadecimal digits of a hash in a name
FAST = 1  # PNG's fastest compression: the files are read a few times only


def of_images(pictures: Sequence[Image.Image], captions: Sequence[str], root: Path) -> Path:
    """Write pictures as PNG files, their captions beside them. Return their folder below root.

    Args: captions: one for each picture, one for all, or one text with a line for each; empty: none.
    Raises: ValueError if there are no pictures, or another number of captions.
    """
    if not pictures:
        raise ValueError("no images came through the link")
    texts = _one_for_each(captions, len(pictures))
    files: dict[str, tuple[Image.Image, str]] = {}
    seen: Counter[str] = Counter()  # the same picture may be there twice
    for picture, text in zip(pictures, texts, strict=True):
        name = _hash(f"{picture.mode} {picture.size} {text}\0".encode() + picture.tobytes())
        files[f"{name}-{seen[name]}" if seen[name] else name] = (picture, text)
        seen[name] += 1

    def write(folder: Path) -> None:
        for name, (picture, text) in files.items():
            picture.save(folder / f"{name}.png", compress_level=FAST)
            if text:
                (folder / f"{name}.txt").write_text(text, encoding="utf-8")

    return _made(root / _hash("\n".join(sorted(files)).encode()), write)


def of_folders(folders: Sequence[Path], root: Path, digests: result_cache.Digests, apart: Sequence[Path] = ()) -> Path:
    """Put copies of the files of several folders into one below root. Return it.

    Args: apart: folders that do not belong to them where they lie inside.
    """

    def wanted(folder: Path) -> list[Path]:
        inside = {other for other in apart if folder in other.parents}
        return [file for file in result_cache.files_in(folder) if not inside & set(file.parents)]

    def write(target: Path) -> None:
        for i, folder in enumerate(folders):
            for file in wanted(folder):
                place = target / str(i) / file.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)

    found = [digests.of_files(folder, wanted(folder)) for folder in folders]
    digests.save()
    return _made(root / _hash("\n".join(found).encode()), write)


def _one_for_each(captions: Sequence[str], count: int) -> Sequence[str]:
    texts = [text.strip() for text in captions]
    if len(texts) == 1 and count > 1 and len(lines := texts[0].splitlines()) > 1:
        texts = [line.strip() for line in lines]
    if len(texts) <= 1:
        return (texts or [""]) * count
    if len(texts) != count:
        raise ValueError(f"{len(texts)} captions for {count} images: give one for each, or one for all")
    return texts


def _made(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return a folder that is complete: it gets its name when everything is in it."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix="."))
    try:
        write(made)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:NAME]
