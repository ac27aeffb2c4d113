"""A folder that `make-data` fills: how each image was made stands in its PNG, and for all of them in manifest.jsonl."""

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
from ..data.images import SUFFIXES
from .dataset_recipe import KINDS, MOST, WORDS, Image, Recipe, image


class Occupied(UserError):
    """Other images are in the folder. Another folder helps, and a program that started this one can choose it."""

    kind = "occupied"


KEY = "pu_unlearn"  # of the PNG's text
SAME = ("negative_prompt", "resolution", "steps", "guidance", "sampler", "clip_skip", "prediction_type")
Record = dict[str, Any]


def shared(recipe: Recipe, base_hash: str) -> Record:
    """What all images have in common and what their looks depend on. Names, never paths.

    Args: base_hash: sha256 of the model's weights.
    """
    return {
        **{name: getattr(recipe, name) for name in SAME},
        "from_seed": recipe.seed,
        "base": Path(recipe.base).resolve().name if Path(recipe.base).exists() else recipe.base,
        "base_hash": base_hash[:10],  # what UIs show of a checkpoint
        "vae": recipe.vae and recipe.vae.resolve().name,
    }


def kept(recipe: Recipe, common: Record) -> set[str]:
    """The files of earlier runs with the same settings. Removes what a power cut left half written.

    Raises: Occupied with what differs, or where other images, or more than asked for, lie in the folders.
    """
    found, foreign, problems = set(), [], []
    for path in _pictures(recipe.out):
        record, file = _read(path), f"{path.parent.name}/{path.name}"
        now = record and {**asdict(image(recipe, record["kind"], record["index"])), **common}
        changed = _changed(record, now) if record else []
        problems += changed
        if not record or (not changed and file != now["file"]):
            foreign.append(file)
        elif not changed and record["index"] >= recipe.count(record["kind"]):
            problems.append(f"--n-{WORDS[record['kind']]}: more are there than {recipe.count(record['kind'])}")
        found.add(file)
    if foreign:
        problems.append(f"images that make-data did not make, or not under this name: {', '.join(foreign[:3])}")
    if problems:
        told = "\n".join(f"{recipe.out}: {text}" for text in dict.fromkeys(problems))
        raise Occupied(f"{told}\nSay the same as then, or make another folder: --out")
    return found


def _changed(record: Record, now: Record) -> list[str]:
    """One sentence for each option that an image was made with another value of."""
    options = {name: f"--{name.replace('_', '-')}" for name in (*SAME, "vae", "base")}
    options |= {"base_hash": "--base", "from_seed": "--seed", "prompt": f"--{WORDS[record['kind']]}-prompt"}
    return [
        f"{option}: the images there have {record.get(name)!r}, not {now[name]!r}"
        for name, option in options.items()
        if record.get(name) != now[name]
    ]


def _pictures(out: Path) -> Iterator[Path]:
    for folder in (out / "unlabeled", out / "sensitive"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(".") and path.is_dir():  # of files.replacing, when the power went
                shutil.rmtree(path)
            elif path.suffix.lower() in SUFFIXES:
                yield path


def _read(path: Path) -> Record | None:
    """How an image was made; None for what this command did not make, and for what is damaged."""
    try:
        with Picture.open(path) as picture:
            record = json.loads(picture.info[KEY])
        return record if record["kind"] in KINDS and 0 <= record["index"] < MOST else None
    except (OSError, KeyError, TypeError, ValueError):
        return None


def save(out: Path, one: Image, pixels: np.ndarray, common: Record) -> None:
    """Args: pixels: [h, w, 3] uint8."""
    text = PngInfo()
    text.add_itxt(KEY, json.dumps({**asdict(one), **common}, ensure_ascii=False))
    with replacing(out / one.file) as temporary:
        Picture.fromarray(pixels).save(temporary, pnginfo=text)


def write(out: Path, made: Sequence[Image], common: Record) -> None:
    """One line for each image, in the order of the files' names: kinds are in a line, not in its place."""
    lines = [
        json.dumps({**asdict(one), **common}, ensure_ascii=False) for one in sorted(made, key=lambda one: one.file)
    ]
    write_text(out / "manifest.jsonl", "".join(f"{line}\n" for line in lines))
