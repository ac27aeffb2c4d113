"""Remember the files of earlier trainings: ComfyUI forgets its results when it restarts. Standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

TRAINER = Path(__file__).resolve().parents[1] / "trainer"
PLACES = ("output_dir", "base", "unlabeled", "sensitive", "init_lora")  # settings that say where something is, not what
LITTER = ("Thumbs.db", "desktop.ini")  # what systems add to folders; so are names that begin with a dot
NAME_BYTES = 100  # the trainer's limit
BUILTIN_DATA = (".toml", ".npz", ".safetensors", ".json")  # what the demo is trained on
CHUNK = 2**20


def recipe() -> int:
    """Return the trainer's hand-raised number, see RECIPE in trainer/__init__.py."""
    found = re.search(r"^RECIPE = (\d+)", (TRAINER / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{TRAINER / '__init__.py'}: has no line RECIPE = number")
    return int(found[1])


def key_of(settings: Mapping[str, Any], inputs: Mapping[str, Path], digests: Digests) -> str:
    """Return the identity of a training: settings, files by content, the trainer's recipe and defaults.

    Args: inputs: the checkpoint, folders of images and a LoRA, by setting; wherever they lie, the key is the same.
    """
    schema = json.loads((TRAINER / "schema.json").read_text(encoding="utf-8"))["fields"]
    found = {
        "recipe": recipe(),
        "defaults": {name: field.get("default") for name, field in schema.items()},
        "settings": {name: value for name, value in settings.items() if name not in PLACES},
        "inputs": {name: digests.of(path) for name, path in inputs.items()},
    }
    if "base" not in inputs:
        files = [path for path in files_in(TRAINER / "builtin") if path.suffix in BUILTIN_DATA]
        found["builtin"] = digests.of_files(TRAINER / "builtin", files)
    digests.save()
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def files_in(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, also linked ones, without what systems leave there."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, names, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        found += [Path(place, name) for name in files if not name.startswith(".") and name not in LITTER]
    return sorted(path for path in found if path.is_file())


class Digests:
    """Hashes of files by content. A file is read again only where its size or time has changed."""

    def __init__(self, store: Path) -> None:
        """Args: store: a JSON file, so that a big checkpoint is read once, not once a start of ComfyUI."""
        self.store = store
        self._known: dict[str, list[Any]] = read_json(store)
        self._is_changed = False

    def of(self, path: Path) -> str:
        """Return the hash of a file, or of the names and contents in a folder."""
        return self.of_files(path, files_in(path)) if path.is_dir() else self._file(path)

    def of_files(self, root: Path, files: Iterable[Path]) -> str:
        """Return the hash of files, with their places below root."""
        lines = (f"{path.relative_to(root).as_posix()}\0{self._file(path)}\n" for path in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def save(self) -> None:
        """Write what was read newly."""
        if self._is_changed:
            write(self.store, json.dumps({path: entry for path, entry in self._known.items() if os.path.exists(path)}))
            self._is_changed = False

    def _file(self, path: Path) -> str:
        status = path.stat()
        state = [status.st_size, status.st_mtime_ns]
        size, time_ns, digest = self._known.get(str(path), [-1, -1, ""])
        if [size, time_ns] != state:
            digest = sha256(path)
            self._known[str(path)] = [*state, digest]
            self._is_changed = True
        return digest


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Results:
    """A JSON file: key -> what a training was called, and once it has ended, the files that it made."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def get(self, key: str) -> dict[str, str] | None:
        """Return the files by kind if all are there and the LoRA is still the one that was made."""
        entry = read_json(self.file).get(key, {})
        files = entry.get("files")
        if not files or not all(Path(path).exists() for path in files.values()):
            return None
        return files if sha256(Path(files["lora"])) == entry["lora_sha256"] else None

    def interrupted(self, key: str) -> str | None:
        """Return the name of a training that has begun and did not end."""
        entry = read_json(self.file).get(key, {})
        return None if "files" in entry else entry.get("name")

    def begin(self, key: str, name: str) -> None:
        self._put(key, {"name": name})

    def put(self, key: str, files: Mapping[str, str]) -> None:
        self._put(key, {"files": dict(files), "lora_sha256": sha256(Path(files["lora"]))})

    def _put(self, key: str, entry: Mapping[str, Any]) -> None:
        write(self.file, json.dumps({**read_json(self.file), key: entry}, indent=1))


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if the file is absent or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def free_name(name: str, *, taken: Collection[Path], names: Collection[str] = ()) -> str:
    """Return the first of name, name-2, name-3, … that names no run and no LoRA.

    Args:
        taken: folders; a name is taken if one holds it, as a folder, a LoRA or what belongs to one.
        names: other names that are taken.
    """
    number, candidate = 1, name
    while candidate in names or any((folder / f"{candidate}{end}").exists() for folder in taken for end in _ENDS):
        number += 1
        suffix = f"-{number}"
        candidate = name.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix
    return candidate


_ENDS = ("", ".safetensors", ".preview.png", ".json", ".md", "-merged.safetensors", "-merged", "-model")


def move_new(source: Path, target: Path) -> Path:
    """Move a file to a name that no file has: target, or else target-2, target-3, …. Return the new path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    number, place = 1, target
    while not _moved(source, place):
        number += 1
        place = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return place


def _moved(source: Path, place: Path) -> bool:
    """Move a file unless something is there already."""
    try:
        os.link(source, place)  # unlike a rename, it fails where a file has come in the meantime
    except FileExistsError:
        return False
    except OSError:  # a file system without links, or another disk
        if place.exists():
            return False
        write(place, source.read_bytes())
    source.unlink()
    return True


def write(target: Path, data: bytes | str) -> None:
    """Write a file so that it is complete or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".pu-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        os.chmod(name, 0o644)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)
