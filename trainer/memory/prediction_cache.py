"""Predictions of peak memory, kept between runs: each takes seconds, and a start on a GPU needs several."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from ..common.files import replacing
from . import estimator
from .estimator import Estimate, Shape
from .memory_plan import MemoryPlan

FOLDER = "PU_UNLEARN_CACHE"  # environment variable: another folder than the system's
MODELS = ("networks", "noise_schedule")  # modules of trainer/models whose code a prediction runs
PACKAGES = ("torch", "diffusers", "peft")  # the same


def predict(shape: Shape, plan: MemoryPlan) -> Estimate:
    """Return `estimator.predict(shape, plan)`: the one kept from an earlier call, if there is one."""
    file = folder() / "predictions" / f"{_key(shape, plan)}.json"
    with suppress(OSError, ValueError, TypeError):  # absent, or damaged
        return Estimate(**json.loads(file.read_text(encoding="utf-8")))
    made = estimator.predict(shape, plan)
    with suppress(OSError):  # no home, no space: it is predicted anew then
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, durable=False) as temporary:
            temporary.write_text(json.dumps(asdict(made)), encoding="utf-8")
    return made


def folder() -> Path:
    """Return the folder of what may be deleted at any time: $PU_UNLEARN_CACHE, or the system's place for caches."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    home = Path(os.path.expanduser("~"))  # not Path.home(), which raises where there is none
    if sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        root = home / "Library" / "Caches"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return (root if root.is_absolute() else Path(tempfile.gettempdir())) / "pu-unlearn"


def _key(shape: Shape, plan: MemoryPlan) -> str:
    asked = json.dumps([asdict(shape), asdict(plan), _code()], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()


@functools.cache
def _code() -> list[str]:
    """Return what tells one state of the code that predicts from another."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), *(here.parent / "models" / f"{name}.py" for name in MODELS)]
    sources = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return [sources, *(version(name) for name in PACKAGES)]
