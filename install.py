"""Run by ComfyUI-Manager after installing, and by A1111 and Forge at every start: looks and explains, changes nothing,
always ends with 0.

diffusers is not in requirements.txt: no version range leaves every host as it is (its newest release pulls another
huggingface_hub under transformers 4, an older one would replace a newer one). Where it is missing, this says how to add
the right one, or an environment of the trainer's own.
"""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
TORCH_INDEX = "https://download.pytorch.org/whl/cu126"
NEEDED = {
    "torch": "2.5",
    "diffusers": "0.35",
    "transformers": "4.57",
    "peft": "0.17",
    "accelerate": "1.2",
    "safetensors": "0.4.5",
    "pydantic": "2.7",
    "filelock": "3.12",
    "matplotlib": "3.8",
    "psutil": "5.9",
    "scikit-learn": "1.4",
    "imagehash": "4.3",
}


def numbers(text: str) -> tuple[int, ...]:
    """Of a version such as 0.42.1+cu130: (0, 42, 1)."""
    found = []
    for part in text.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)


def findings() -> list[str]:
    """One line for each package that is missing or too old."""
    found = []
    for name, least in NEEDED.items():
        try:
            have = version(name)
        except PackageNotFoundError:
            found.append(f"{name} is missing (needed: {least} or newer)")
            continue
        if numbers(have) < numbers(least):
            found.append(f"{name} {have} is too old (needed: {least} or newer)")
    return found


def diffusers_line() -> str:
    """The diffusers that fits the huggingface_hub which is here."""
    try:
        is_old = numbers(version("huggingface_hub")) < (1,)
    except PackageNotFoundError:
        is_old = False
    return '"diffusers==0.35.2"' if is_old else '"diffusers>=0.35,<0.43"'


def in_webui() -> bool:
    """Whether A1111 or Forge runs this: they put their own folder on the path."""
    return find_spec("modules") is not None and find_spec("modules.launch_utils") is not None


def own_python() -> Path:
    """The Python of an environment of the trainer's own, where pu_node/launch.py finds it."""
    return HERE / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def main() -> None:
    chosen = os.environ.get("PU_UNLEARN_PYTHON") or (own_python() if own_python().exists() else None)
    if chosen:
        print(f"PU Unlearn: training runs with {chosen}.")
        return
    found = findings()
    if not found:
        print("PU Unlearn: everything that training needs is here.")
        return
    for line in found:
        print(f"PU Unlearn: {line}")
    if in_webui():
        print("PU Unlearn: the webui's own packages stay as they are: it names their versions, and others break it.")
    elif all(line.startswith("diffusers is missing") for line in found):
        print(f"PU Unlearn: add it with: {sys.executable} -m pip install {diffusers_line()}")
    # on Windows the plain package of torch cannot use the card
    torch = f' && "{own_python()}" -m pip install torch --index-url {TORCH_INDEX}' if sys.platform == "win32" else ""
    print(
        "PU Unlearn: give the trainer an environment of its own, which leaves this one alone:\n"
        f'  "{sys.executable}" -m venv "{HERE / "venv"}"{torch} && "{own_python()}" -m pip install -e "{HERE}"\n'
        "  It is found there at the next start; one elsewhere is named by PU_UNLEARN_PYTHON."
    )


if __name__ == "__main__":
    main()
