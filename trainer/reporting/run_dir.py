"""The folder of one run: config.toml, events.jsonl, state/, cache/, keep/, samples/. No file is ever half written."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.events import is_event
from ..common.files import locked, replacing, write_text
from ..config.train_config import NAME_BYTES

if TYPE_CHECKING:
    from torch import Tensor


class RunDir:
    """The files of a run, and their formats. The caller decides when to write, and holds `files.locked(root)`."""

    def __init__(self, output_dir: Path, name: str) -> None:
        self.name = name
        self.root = output_dir / name
        self.lora = output_dir / f"{name}.safetensors"
        self.cache = self.root / "cache"
        self.samples = self.root / "samples"
        self.preservation = self.root / "keep"  # prior preservation images
        self.report = self.root / "report.html"
        self._state = self.root / "state"

    @property
    def is_used(self) -> bool:
        """Return whether a run of this name was started or finished."""
        return (self.root / "config.toml").exists() or self.lora.exists()

    @property
    def is_taken(self) -> bool:
        """Return whether a new run of this name would overwrite a file: of a run, or beside its LoRA."""
        beside = ("-merged.safetensors", "-merged", "-model", "-model.md", ".md", ".json", ".preview.png")
        return self.is_used or any(self.root.with_name(self.name + suffix).exists() for suffix in beside)

    @property
    def has_state(self) -> bool:
        """Return whether there is a state to resume from."""
        return bool(self._states())

    @property
    def newest_step(self) -> int:
        """The step of the newest state; 0 without any."""
        return int(self._states()[0].stem.removeprefix("step")) if self.has_state else 0

    def save_config(self, toml: str) -> None:
        """Write config.toml."""
        write_text(self.root / "config.toml", toml)

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to events.jsonl."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(self._torn_end() + json.dumps(event, ensure_ascii=False) + "\n")

    def _torn_end(self) -> str:
        """Return what must come before the next event: the end of a line that a kill left without one."""
        path = self.root / "events.jsonl"
        with open(path, "rb") as file:
            if not (size := file.seek(0, 2)):
                return ""
            file.seek(size - 1)
            return "" if file.read(1) == b"\n" else "\n"

    def events(self) -> list[dict[str, Any]]:
        """Read events.jsonl; empty if there is none. Lines that a kill or a full disk cut off are left out."""
        path = self.root / "events.jsonl"
        if not path.exists():
            return []
        found = []
        # not splitlines: a prompt may hold U+2028, which is a line's end to it, but not to JSON
        for line in path.read_bytes().decode(errors="replace").split("\n"):
            with contextlib.suppress(ValueError, RecursionError):  # torn by a kill or a full disk, also inside a letter
                event = json.loads(line)
                if is_event(event):
                    found.append(event)
        return found

    def truncate_events(self, after_step: int) -> None:
        """Remove the step events after a step: a resumed run takes these steps again."""
        kept = [e for e in self.events() if e["event"] != "step" or e["step"] <= after_step]
        write_text(self.root / "events.jsonl", "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept))

    def save_state(self, step: int, state: Mapping[str, Any], *, keep: int = 1) -> None:
        """Write a state to resume from, as one file, and delete old states.

        Args: state: nested dicts of tensors and JSON values. keep: how many of the newest states stay.
        """
        from safetensors.torch import save_file

        for torn in self._state.glob(".*"):  # left by a killed run; no other process writes here
            shutil.rmtree(torn, ignore_errors=True)
        tensors: dict[str, Tensor] = {}
        values = json.dumps(_split(state, "", tensors))
        with replacing(self._state / f"step{step:08d}.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"state": values})
        for old in self._states()[keep:]:
            old.unlink()

    def _states(self) -> list[Path]:
        """List the state files, newest first."""
        return sorted(self._state.glob("step*.safetensors"), reverse=True)

    def load_state(self) -> dict[str, Any]:
        """Read the newest state that is not damaged. Returns: what `save_state` was given, with all keys as text.

        Raises: UserError if there is none.
        """
        from safetensors import safe_open

        reason = "the folder has no state"
        for path in self._states():
            try:
                with safe_open(path, "pt") as file:
                    # cloned: Windows deletes no file of which a tensor is still mapped
                    tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                    return _join(json.loads(file.metadata()["state"]), tensors)
            except Exception as error:  # json, safetensors and the file system each have their own
                reason = f"{path.name}: {error}"
        raise UserError(f"{self._state}: cannot be resumed from ({reason})")

    def remove_cache(self) -> None:
        """Delete the encoded images."""
        shutil.rmtree(self.cache, ignore_errors=True)


def resume_arguments(run: RunDir, words: Sequence[str]) -> list[str]:
    """Return the command line that resumes a run if it has a state, and otherwise starts it.

    Deletes the folder of a run that ended before its first state, as nothing was trained.

    Args: words: the command line that starts the run.
    Raises: UserError if another process is using the folder.
    """
    if run.has_state:
        return ["--resume", f"--name={run.name}", f"--output-dir={run.root.parent}"]
    if run.is_used and not run.lora.exists():
        with locked(run.root):
            pass  # raises if another process has just started this run
        shutil.rmtree(run.root)
    return list(words)


def free_name(output_dir: Path, name: str) -> str:
    """Return name, or name-2, name-3, … if it is taken: a new run never overwrites an older one."""
    number, candidate = 1, name
    while RunDir(output_dir, candidate).is_taken:
        number += 1
        suffix = f"-{number}"
        candidate = name.encode()[: NAME_BYTES - len(suffix)].decode(errors="ignore") + suffix
    return candidate


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Move tensors into a flat dict. Returns: the value with {"tensor": key} in place of each tensor."""
    if isinstance(value, Mapping):
        return {str(k): _split(v, f"{path}/{k}", tensors) for k, v in value.items()}
    if hasattr(value, "detach"):
        tensors[path] = value.detach().cpu().clone().contiguous()  # cloned: some share memory, which the format forbids
        return {"tensor": path}
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `_split`: put the tensors back."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {"tensor"}:
        return tensors[value["tensor"]]
    return {k: _join(v, tensors) for k, v in value.items()}
