"""One run's folder: config.toml, events.jsonl, state/, cache/, samples/. Everything in it is whole or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import replacing, write_text

if TYPE_CHECKING:
    from torch import Tensor


class RunDir:
    """Paths and formats; the caller decides when to write. Holding `files.locked(root)` is the caller's business."""

    def __init__(self, output_dir: Path, name: str) -> None:
        self.name = name
        self.root = output_dir / name
        self.lora = output_dir / f"{name}.safetensors"
        self.cache = self.root / "cache"
        self.samples = self.root / "samples"
        self.report = self.root / "report.html"
        self._state = self.root / "state"

    @property
    def is_used(self) -> bool:
        return (self.root / "config.toml").exists() or self.lora.exists()

    @property
    def has_state(self) -> bool:
        return (self._state / "state.json").exists()

    def save_config(self, toml: str) -> None:
        write_text(self.root / "config.toml", toml)

    def append_event(self, event: Mapping[str, Any]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def events(self) -> list[dict[str, Any]]:
        path = self.root / "events.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]

    def truncate_events(self, after_step: int) -> None:
        """Forget steps that a resumed run takes again."""
        kept = [e for e in self.events() if e["event"] != "step" or e["step"] <= after_step]
        write_text(self.root / "events.jsonl", "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept))

    def save_state(self, step: int, tensors: dict[str, Tensor], values: Mapping[str, Any]) -> None:
        """Keep what a resume needs. state.json is written last and names its tensors: a kill leaves the older pair."""
        from safetensors.torch import save_file

        file = f"step{step:08d}.safetensors"
        with replacing(self._state / file) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
        write_text(self._state / "state.json", json.dumps({**values, "step": step, "tensors": file}, indent=1) + "\n")
        for old in self._state.glob("step*.safetensors"):
            if old.name != file:
                old.unlink()

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Raises: UserError if the state is missing or damaged."""
        from safetensors.torch import load_file

        try:
            values = json.loads((self._state / "state.json").read_text(encoding="utf-8"))
            return load_file(self._state / Path(values["tensors"]).name), values
        except Exception as error:  # json, safetensors and the file system each have their own
            raise UserError(f"{self._state}: cannot be resumed from ({error})") from None

    def remove_cache(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)


def free_name(output_dir: Path, name: str) -> str:
    """name, or name-2, name-3, …: a new run never overwrites an older one."""
    number = 1
    candidate = name
    while RunDir(output_dir, candidate).is_used:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
