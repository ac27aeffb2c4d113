"""The files of a data set made by `make-data`: each PNG holds the settings it was made with, as does manifest.jsonl."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo

from ..common.errors import UserError
from ..common.files import replacing, write_text
from ..data.decoding import SUFFIXES
from .dataset_recipe import KINDS, MAX_PER_KIND, OPTION_NAMES, ImageSpec, Recipe, image_spec


class Occupied(UserError):
    """Other images are in the folder. Another folder helps, and a program that started this one can choose it."""

    kind = "occupied"


KEY = "pu_unlearn"  # of the text in the PNG
COMMON = ("negative_prompt", "resolution", "steps", "guidance", "sampler", "clip_skip", "prediction_type")
Record = dict[str, Any]  # the settings that an image was made with


def common_settings(recipe: Recipe, base_hash: str) -> Record:
    """Return the settings that all images share, as they are recorded: with names of files, without their folders.

    Args: base_hash: sha256 of the model's weights.
    """
    return {
        **{name: getattr(recipe, name) for name in COMMON},
        "from_seed": recipe.seed,
        "base": Path(recipe.base).resolve().name if Path(recipe.base).exists() else recipe.base,
        "base_hash": base_hash[:10],  # what UIs show of a checkpoint
        "vae": recipe.vae and recipe.vae.resolve().name,
    }


def existing_files(recipe: Recipe, common: Record) -> set[str]:
    """Find the images of earlier runs with the same settings. Removes temporary files of a run that was killed.

    Returns: the files, relative to the data set's folder.
    Raises: Occupied if images were made with other settings or by another program, or if there are too many.
    """
    found, problems = set(), []
    foreign: list[str] = []  # images that were not made by this command
    for path in _image_files(recipe.out):
        record, file = _read(path), f"{path.parent.name}/{path.name}"
        found.add(file)
        if record is None:
            foreign.append(file)
            continue
        spec, count = image_spec(recipe, record["kind"], record["index"]), recipe.count(record["kind"])
        if changes := _describe_changes(record, {**asdict(spec), **common}):
            problems += changes
        elif file != spec.file:
            foreign.append(file)
        elif record["index"] >= count:
            problems.append(f"--n-{OPTION_NAMES[record['kind']]}: the folder holds more than {count} already")
    if foreign:
        problems.append(f"images that make-data did not make, or not under this name: {', '.join(foreign[:3])}")
    if problems:
        listed = "\n".join(f"{recipe.out}: {text}" for text in dict.fromkeys(problems))
        raise Occupied(f"{listed}\nGive the same options as before, or another folder: --out")
    return found


def _describe_changes(record: Record, now: Record) -> list[str]:
    """Return one sentence for each option whose value was another when the image was made."""
    options = {name: f"--{name.replace('_', '-')}" for name in (*COMMON, "vae", "base")}
    options |= {"base_hash": "--base", "from_seed": "--seed", "prompt": f"--{OPTION_NAMES[record['kind']]}-prompt"}
    return [
        f"{option}: the existing images have {record.get(name)!r}, not {now[name]!r}"
        for name, option in options.items()
        if record.get(name) != now[name]
    ]


def _image_files(out: Path) -> Iterator[Path]:
    """Yield the image files of both folders."""
    for folder in (out / "unlabeled", out / "sensitive"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(".") and path.is_dir():  # left by files.replacing in a killed run
                shutil.rmtree(path)
            elif path.suffix.lower() in SUFFIXES:
                yield path


def _read(path: Path) -> Record | None:
    """Read the settings that an image was made with; None for a damaged file, or one that make-data did not make."""
    try:
        with Picture.open(path) as picture:
            record = json.loads(picture.info[KEY])
        return record if record["kind"] in KINDS and 0 <= record["index"] < MAX_PER_KIND else None
    except (OSError, KeyError, TypeError, ValueError):
        return None


def save_image(out: Path, spec: ImageSpec, pixels: np.ndarray, common: Record) -> None:
    """Write one image as PNG, with its settings as text inside. Args: pixels: [h, w, 3] uint8."""
    text = PngInfo()
    text.add_itxt(KEY, json.dumps({**asdict(spec), **common}, ensure_ascii=False))
    with replacing(out / spec.file) as temporary:
        Picture.fromarray(pixels).save(temporary, pnginfo=text)


def save_manifest(out: Path, specs: Sequence[ImageSpec], common: Record) -> None:
    """Write manifest.jsonl: one line for each image, sorted by file name."""
    ordered = sorted(specs, key=lambda spec: spec.file)
    lines = [json.dumps({**asdict(spec), **common}, ensure_ascii=False) for spec in ordered]
    write_text(out / "manifest.jsonl", "".join(f"{line}\n" for line in lines))
