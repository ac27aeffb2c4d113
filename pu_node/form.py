"""Turn the values of the page's form into the trainer's settings, or into one problem a field. Standard library only.

A browser may send anything: a value becomes a setting only after a check against the schema, checkpoints must be in the
host's list, and folders must lie below the roots that were given at start.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import widgets
from .widgets import DEMO, PRESETS

FOLDERS = ("unlabeled", "sensitive")
RESOLUTION = {"type": "integer", "minimum": 64, "maximum": 1024, "multipleOf": 8, "default": 512}
RESOLUTION["description"] = "pixels to train at: the side of a square"
SKIP = {"type": "boolean", "default": False, "description": "ignore images that cannot be read"}
OF_IMAGES = {
    "resolution": RESOLUTION,
    "skip_bad_images": SKIP,
}  # not in the schema: nodes ask for these beside the folders
IMAGES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".jp2", ".ppm"}
IMAGES |= {".pgm", ".tga", ".avif", ".heic", ".heif", ".hif", ".jxl"}
CAPTIONS = (".txt", ".caption")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def fields() -> dict[str, dict[str, Any]]:
    """Return the settings that the form shows: name -> JSON schema."""
    return {**widgets.fields(), **OF_IMAGES}


@functools.lru_cache(maxsize=1)
def demo() -> dict[str, Any]:
    """Return the demo's settings that differ from the defaults. Its file has only lines of the form name = JSON."""
    found = {}
    for line in (widgets.TRAINER / "builtin" / "config.toml").read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition(" = ")
        if equals and name in fields():
            found[name] = json.loads(value.partition(" #")[0])
    return found


def defaults(checkpoint: str) -> dict[str, Any]:
    """Return the form's initial values for a checkpoint."""
    plain = {name: None if widgets.may_be_absent(field) else field.get("default") for name, field in fields().items()}
    return {**plain, **demo()} if checkpoint == DEMO else plain


def read(
    values: Mapping[str, Any], checkpoints: Mapping[str, Path], roots: Sequence[Path]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return settings for the trainer, and problems: field -> a sentence. With any problem the settings are incomplete.

    Args:
        values: of the form: checkpoint, preset, unlabeled, sensitive, and the names of `fields`.
        checkpoints: the choices beside the demo: name -> file.
        roots: folders of images must lie below one of these.
    """
    settings: dict[str, Any] = {}
    problems: dict[str, str] = {}

    def take(name: str, look: Any, *arguments: Any) -> None:
        try:
            settings[name] = look(*arguments)
        except ValueError as error:
            problems[name] = str(error)

    for name, field in fields().items():
        take(name, value_of, field, values[name])
    if values["checkpoint"] != DEMO:
        take("checkpoint", _chosen, values["checkpoint"], checkpoints, "must be in the list; refresh it")
        settings["base"] = settings.pop("checkpoint", None)
        for name in FOLDERS:
            if name == "unlabeled" or values["objective"] != "unsupervised" or values[name]:
                take(name, folder, values[name], roots)
    take("preset", _chosen, values["preset"], PRESETS, f"must be one of {', '.join(PRESETS)}")
    if preset := settings.pop("preset", None):
        settings[preset] = True
    return settings, problems


def value_of(field: Mapping[str, Any], value: Any) -> Any:
    """Return a value with the type of its schema. Raises: ValueError with a sentence for people."""
    kind = widgets.kind_of(field)
    if widgets.may_be_absent(field) and (value is None or not str(value).strip()):
        return None
    if value in (None, ""):
        raise ValueError("must not be empty")
    if kind == "boolean":
        return bool(value)
    if kind == "combo":
        return _chosen(value, {word: word for word in field["enum"]}, f"must be one of {', '.join(field['enum'])}")
    return _text(field, value) if kind == "string" else _number(field, value, kind)


def _chosen(value: Any, options: Mapping[str, Any], rule: str) -> Any:
    if not isinstance(value, str) or value not in options:
        raise ValueError(rule)
    return options[value]


def _text(field: Mapping[str, Any], value: Any) -> str:
    found = str(value).strip()
    if CONTROL.search(found):
        raise ValueError("must be one line of text")
    if "pattern" in field and not re.match(field["pattern"], found):
        raise ValueError("must be letters, digits, spaces and _.+- only, and start with a letter, a digit or _")
    most = field.get("maxLength", 10_000)
    if len(found.encode()) > most:  # file systems count bytes
        raise ValueError(f"must not be longer than {most} bytes (letters beyond a to z take two or more)")
    return found


def _number(field: Mapping[str, Any], value: Any, kind: str) -> float | int:
    try:
        found = float(value)
        if not math.isfinite(found) or (kind == "integer" and found != int(found)):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError("must be a whole number" if kind == "integer" else "must be a number") from None
    found = int(found) if kind == "integer" else found
    limits = {**widgets.numeric(field), **field}
    rules = {
        "minimum": ("at least", lambda limit: found >= limit),
        "exclusiveMinimum": ("greater than", lambda limit: found > limit),
        "maximum": ("at most", lambda limit: found <= limit),
        "exclusiveMaximum": ("less than", lambda limit: found < limit),
        "multipleOf": ("a multiple of", lambda limit: found % limit == 0),
    }
    for rule, (words, holds) in rules.items():
        if rule in limits and not holds(limits[rule]):
            raise ValueError(f"must be {words} {limits[rule]}")
    return found


def uncaptioned(place: Path) -> tuple[int, int]:
    """Count the images of a folder without a caption file beside them. Returns: (how many, of all images)."""
    names: dict[str, set[str]] = {"images": set(), "captions": set()}
    for root, _, files in os.walk(place):
        for name in files:
            stem, suffix = os.path.splitext(os.path.join(root, name).casefold())
            kind = "images" if suffix in IMAGES else "captions" if suffix in CAPTIONS else ""
            if kind and not name.startswith("."):
                names[kind].add(stem)
    return len(names["images"] - names["captions"]), len(names["images"])


def without_caption(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the problem of images that have no caption where the prompt is empty, too; nothing otherwise."""
    if settings.get("prompt") or not settings.get("unlabeled"):
        return {}
    bare, images = uncaptioned(settings["unlabeled"])
    if not bare:
        return {}
    return {"prompt": f"{bare} of {images} unlabeled images have no caption beside them: write one that fits them all"}


def by_field(message: str) -> dict[str, str]:
    """Split the trainer's error by field: field -> sentence; "general" for options that the form does not have."""
    found: dict[str, str] = {}
    for line in message.splitlines():
        option, colon, text = line.partition(": ")
        name = option.removeprefix("--").replace("-", "_")
        is_field = colon and option.startswith("--") and name in (*fields(), *FOLDERS)
        key, sentence = (name, text) if is_field else ("general", line)
        found[key] = f"{found[key]}\n{sentence}" if key in found else sentence
    return found


def folder(text: Any, roots: Sequence[Path]) -> Path:
    """Return a folder below one of the roots; relative paths count from each of them.

    Raises: ValueError for any other path, with the same words whether that path exists or not: the page must not
        reveal what else is on this disk.
    """
    name = str(text or "").strip().strip('"')
    if not name:
        raise ValueError("name a folder of images")
    for root in [] if CONTROL.search(name) else map(Path, map(os.path.normpath, roots)):
        found = Path(os.path.normpath(root / name))
        if root not in (found, *found.parents):  # before any access: Windows would connect to a network path
            continue
        found, real = found.resolve(), root.resolve()
        if real in (found, *found.parents) and found.is_dir():
            return found
    places = " or ".join(str(root) for root in roots)
    raise ValueError(f"no such folder below {places}, where images may lie (other places are allowed at start)")
