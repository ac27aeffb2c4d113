"""Choose the Python that trains: the host's, or that of the environment which install.py made. Standard library only.

install.py runs the import check and records the result; the nodes read it and never install anything.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

PACK = Path(__file__).resolve().parents[1]
OWN = PACK / "venv"
STATE = PACK / ".install"  # what install.py keeps: its lock, its working folder, the results of its import checks
CHECKED = STATE / "checked.json"
FAILED = PACK / "install-failed.txt"  # why the last installation failed, in one line; absent after a success
CHECK_TIMEOUT_S = 600  # a cold disk and a virus scanner take minutes for torch

REQUIREMENTS = (  # as in pyproject.toml
    "torch>=2.5",
    "diffusers>=0.35,<0.43",
    "transformers>=4.57,<6",
    "peft>=0.17",
    "accelerate>=1.2",
    "safetensors>=0.4.5",
    "pydantic>=2.7",
    "filelock>=3.12",
    "numpy>=1.26",
    "pillow>=10.1",
    "matplotlib>=3.8",
    "jinja2>=3.0",
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "imagehash>=4.3",
    "psutil>=5.9",
    "tqdm>=4.66",
    "tomli>=2; python_version < '3.11'",
)
ALSO_WATCHED = ("huggingface-hub", "tokenizers", "torchvision", "bitsandbytes", "xformers")  # they can break an import

# Every module of the trainer and every package of the list; argument: the folder of the pack.
IMPORT_CHECK = """
import importlib, pathlib, sys
pack = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(pack))
for path in sorted((pack / "trainer").rglob("*.py")):
    if path.name != "__main__.py":
        importlib.import_module(".".join(path.relative_to(pack).with_suffix("").parts).removesuffix(".__init__"))
for name in "peft matplotlib sklearn scipy imagehash psutil tqdm PIL pydantic filelock accelerate".split():
    importlib.import_module(name)
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
"""


def own_python(folder: Path = OWN) -> Path:
    """Return the interpreter of a virtual environment, existing or not."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def versions() -> ModuleType | None:
    """Return `packaging`, or pip's copy of it, or None."""
    for name in ("packaging", "pip._vendor.packaging"):
        try:
            for part in ("requirements", "utils", "version"):
                __import__(f"{name}.{part}")
        except ImportError:
            continue
        return sys.modules[name]
    return None


def installed(name: str) -> str | None:
    """Return the version of a package in this Python, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def missing() -> list[str]:
    """Return one line for each package that this Python lacks or has in a version that does not fit."""
    packaging = versions()
    if packaging is None:
        return ["packaging is missing"]
    found = []
    for line in REQUIREMENTS:
        requirement = packaging.requirements.Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        version = installed(requirement.name)
        if version is None:
            found.append(f"{requirement.name} is missing (needed: {requirement.specifier})")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version} does not fit (needed: {requirement.specifier})")
    return found


def fingerprint() -> str:
    """Return what the import check of this Python depends on: interpreter, requirements, versions."""
    names = [line.split(">=")[0] for line in REQUIREMENTS] + list(ALSO_WATCHED)
    found = {name: installed(name) for name in names}
    return json.dumps([sys.executable, sys.version, REQUIREMENTS, found])


def child_variables() -> dict[str, str]:
    """Return the environment variables of a child: it ignores packages in the user's home where this Python does."""
    return {**os.environ, **({"PYTHONNOUSERSITE": "1"} if sys.flags.no_user_site else {})}


def import_error(python: str | Path) -> str:
    """Import all that training needs in a child process. Return the last line of what went wrong, or nothing."""
    try:
        done = subprocess.run(
            [str(python), "-c", IMPORT_CHECK, str(PACK)],
            env=child_variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=CHECK_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


def record(python: str | Path) -> str:
    """Run the import check of a Python and keep its result. Return the error, or nothing."""
    error = import_error(python)
    STATE.mkdir(exist_ok=True)
    found = {**_records(), str(python): [fingerprint(), error]}
    temporary = CHECKED.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    os.replace(temporary, CHECKED)
    return error


def forget(python: str | Path) -> None:
    """Drop the kept result of a Python whose environment is about to change."""
    if str(python) in (found := _records()):
        del found[str(python)]
        CHECKED.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _records() -> dict[str, list[str]]:
    try:
        return json.loads(CHECKED.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@functools.lru_cache
def _checked_here(python: str, state: str) -> str:
    """Run the import check once a process. Args: state: the fingerprint, so that a change asks for a new check."""
    return import_error(python)


def known_error(python: str | Path) -> str | None:
    """Return the recorded result of the import check, or None if there is none for the packages as they are now."""
    state, error = _records().get(str(python), ["", ""])
    return error if state == fingerprint() else None


def python(*, is_checked: bool = False) -> str | None:
    """Return the Python that can train, or None.

    Args:
        is_checked: run the import check where no result is recorded (seconds, once a process); otherwise the versions
            of the packages decide.
    """
    for candidate in _candidates():
        error = known_error(candidate)
        if error is None:
            error = _checked_here(candidate, fingerprint()) if is_checked else ""
        if not error:
            return candidate
    return None


def _candidates() -> list[str]:
    """The host's Python if its packages fit, then the own environment's if there is one."""
    host = [] if missing() else [sys.executable]
    return host + ([str(own_python())] if own_python().exists() else [])


def advice() -> str:
    """Return what a node shows where no Python can train: what is missing, why, and the one command to run."""
    errors = [found for found in (known_error(candidate) for candidate in _candidates()) if found]
    why = "; ".join(missing() or errors or ["an import fails"])
    lines = [f"The trainer's packages are not installed: {why}."]
    if FAILED.exists():
        lines.append(f"The last installation failed: {FAILED.read_text(encoding='utf-8').strip()}.")
    return "\n".join([*lines, remedy(sys.executable)])


def remedy(python: str) -> str:
    """Return the one command that installs what a Python lacks, with what to do after it."""
    if python in (sys.executable, str(own_python())):
        return f"Run this in a terminal, then start again:\n{install_command()}"
    packages = REQUIREMENTS[1:-1]  # torch is the user's own choice there
    return f"Run this in a terminal, then start again:\n{_command_line(python, '-m', 'pip', 'install', *packages)}"


def install_command() -> str:
    """Return the command line that installs what is missing."""
    return _command_line(sys.executable, str(PACK / "install.py"))


def _command_line(*words: str) -> str:
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
