"""--settings-from: the settings that a LoRA's metadata tells, as the starting point of another run."""

import json
from pathlib import Path
from typing import Any, get_args

from ..builtin import BUILTIN
from ..common.model_files import is_hub_id
from .parser import nearest
from .train_config import TrainConfig

HEADER_BYTES = 100_000_000  # safetensors' own limit
OWN = ("name", "device", "metadata", "log_with")  # of the run that made the LoRA, not of its recipe


def read_lora(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the settings in a LoRA's metadata: what was trained, and how; no path, name or device.

    Adds a sentence to problems if there are none, and for every one that is unknown here.
    """
    try:
        told = json.loads(_metadata(path)["pu_config"])
        if not isinstance(told, dict):
            raise ValueError("pu_config is no table")
    except KeyError:
        problems.append(f"--settings-from: {path} tells no settings: it is no LoRA of this trainer (no pu_config)")
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"--settings-from: {path} cannot be read ({error})")
        return {}
    known = list(TrainConfig.model_fields)
    unknown = [name for name in told if name not in known]
    problems += [f"--settings-from: {path}: no setting named {name!r}{nearest(name, known)}" for name in unknown]
    return {name: value for name, value in told.items() if value is not None and _is_kept(name, value)}


def _is_kept(name: str, value: Any) -> bool:
    """Whether a value means here what it meant there: metadata holds at most the last part of a path."""
    if name == "base":
        return value == BUILTIN or is_hub_id(str(value))
    field = TrainConfig.model_fields.get(name)
    return field is not None and name not in OWN and Path not in (field.annotation, *get_args(field.annotation))


def _metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a safetensors file, without torch. Raises: OSError, ValueError; KeyError if it has none."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER_BYTES:
            raise ValueError("no safetensors file")
        found = json.loads(file.read(length).decode("utf-8"))
    metadata = found.get("__metadata__") if isinstance(found, dict) else None
    return metadata if isinstance(metadata, dict) else {}
