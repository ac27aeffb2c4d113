"""Read a .ckpt without running code in it: torch's restricted unpickler plus a few harmless Lightning classes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


CONVERT = (
    "Convert it once where you trust it: load it in a Stable Diffusion UI and save it as .safetensors "
    "(A1111: Checkpoint Merger, 'No interpolation')."
)


def load(path: Path, *, option: str = "--base") -> dict[str, Tensor]:
    """Read the tensors of a .ckpt by name, mapped from disk. Raises: UserError if it needs anything beyond tensors."""
    import torch
    from torch.serialization import safe_globals

    if tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) < (2, 10):
        raise UserError(f"{option}: a .ckpt is only opened with torch 2.10 or newer, this is {torch.__version__}")
    try:
        with safe_globals(_harmless()):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch each have their own
        raise UserError(f"{option}: {path} is not opened: {_reason(error)}. {CONVERT}") from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    entries = state.items() if isinstance(state, dict) else ()
    return {name: value for name, value in entries if isinstance(name, str) and isinstance(value, torch.Tensor)}


def _reason(error: Exception) -> str:
    """Shorten torch's long, coloured error message to a part of a sentence."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).split("WeightsUnpickler error: ")[-1].strip()
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it holds more than weights ({found[1]})"
    return f"it cannot be read ({(text or repr(error)).splitlines()[0]})"


def _harmless() -> list[Any]:
    """List the harmless classes that Lightning's checkpoints name: a stand-in for its callback, numpy's scalars."""
    import numpy as np

    class ModelCheckpoint:
        pass

    core = "numpy.core" if np.lib.NumpyVersion(np.__version__) < "2.0.0" else "numpy._core"
    scalar = importlib.import_module(f"{core}.multiarray").scalar
    callbacks = [
        (ModelCheckpoint, f"{package}.callbacks.model_checkpoint.ModelCheckpoint")
        for package in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")
    ]
    scalars = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype]
    return [*callbacks, *scalars, *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")}]
