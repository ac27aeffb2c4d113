"""Remember the files of earlier trainings: ComfyUI forgets its results when it restarts."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
CODE = (".py", ".toml", ".npz", ".safetensors", ".json")  # of the trainer: what can change a LoRA


def key_of(settings: Mapping[str, Any], inputs: Iterable[Path]) -> str:
    """Return the identity of a training: settings, the files it reads (name, size, time), and the trainer's code."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    code = [path for path in _files([PACK / "trainer"]) if path.suffix in CODE]
    for path in [*_files(inputs), *code]:
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(inputs: Iterable[Path]) -> list[Path]:
    found = []
    for path in inputs:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


class Results:
    """A JSON file: key -> the files that a training wrote. An entry counts only while all its files exist."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def get(self, key: str) -> dict[str, str] | None:
        found = self._read().get(key)
        if found and all(Path(path).exists() for path in found.values()):
            return found
        return None

    def put(self, key: str, made: Mapping[str, str]) -> None:
        write(self.file, json.dumps({**self._read(), key: dict(made)}, indent=1).encode())

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}


def write(target: Path, data: bytes) -> None:
    """Write a file so that it is complete or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".pu-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)
