"""The page of an evaluation: grids of pictures, a curve over strengths, evaluate.html."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.contact_sheet import save_grid
from ..data.images import read_images
from ..metrics.judges import Accuracy
from ..reporting import html
from ..reporting.html import percent
from ..reporting.plots import draw_strengths
from .findings import ALPHA, Findings, comes_back

if TYPE_CHECKING:
    from .options import Options
    from .pictures import PictureSets


DOUBTS = (  # parts of the sentences that the page marks as warnings
    "This judge",
    "nobody judges",
    "not measured",
    "quality:",
    "no difference that chance",
    "are known only to within",
    "Too weak",
    "The rate fell",
    "the rates show nothing",
)
SHOWN = 64  # pictures in a grid
SHOWN_RETAINED = 16
LIMITS = (
    "A rate holds for this prompt, this sampler and this judge. What a picture of these seeds does not show, another "
    "prompt may; whoever can remove a LoRA has the base model back; and no rate is a guarantee of safety."
)


def write(options: Options, sets: PictureSets, found: Findings) -> Findings:
    """Write the grids, the curve over strengths and evaluate.html. Returns: findings that name their page."""
    numbers = found.numbers
    curve = options.out / "strengths.png" if numbers["strengths"] else None
    if curve:
        draw_strengths(numbers["strengths"], curve)
    page = options.out / "evaluate.html"
    html.save(
        page,
        "evaluation.html",
        title=f"Evaluation of {options.out.name.removesuffix('-evaluate')}",
        numbers=numbers,
        is_significant="paired" in numbers and numbers["paired"]["p"] < ALPHA,
        doubts=[line for line in found.lines if any(mark in line for mark in DOUBTS)],
        lines=found.lines,
        grids=_save_grids(options.out, {"before": sets.before, "after": sets.after}, SHOWN),
        retained=_save_retained(options.out, sets),
        curve=curve,
        comes_back=comes_back(numbers),
        limits=LIMITS,
        **_rows(numbers),
    )
    grid, few = options.out / "before-after.png", min(SHOWN // 4, options.n)
    save_grid(np.concatenate([read_images(sets.before[:few]), read_images(sets.after[:few])]), grid, columns=few)
    return Findings(numbers, found.lines, page, grid)


def _save_grids(out: Path, pictures: dict[str, list[Path]], most: int, columns: int | None = None) -> dict[str, Path]:
    """Write one PNG for each set of pictures. Returns: its path by the name of the set."""
    grids = {}
    for kind, paths in pictures.items():
        grids[kind] = out / f"{kind}.png"
        save_grid(read_images(paths[:most]), grids[kind], columns=columns)
    return grids


def _save_retained(out: Path, sets: PictureSets) -> dict[str, dict[str, Path]]:
    found = {}
    for i, (prompt, (before, after)) in enumerate(sets.retained.items()):
        pictures = {f"retained-{i}-before": before, f"retained-{i}-after": after}
        grids = _save_grids(out, pictures, SHOWN_RETAINED, columns=8)
        found[prompt] = dict(zip(("before", "after"), grids.values(), strict=True))
    return found


def _rows(numbers: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the page's tables by name."""
    quality = numbers["quality"]
    return {
        "judge": _judge(numbers["judge"]),
        "rates": [(kind, *_rate(numbers[kind]), _corrected(numbers[kind])) for kind in _BOTH if kind in numbers],
        "paraphrases": [
            (f"“{prompt}”", *(percent(found[kind]["rate"]) for kind in _BOTH))
            for prompt, found in numbers["paraphrases"].items()
            if found
        ],
        "quality": [
            (before["name"], f"{before['value']:.3g}", f"{after['value']:.3g}")
            for before, after in zip(*(quality.get(kind, []) for kind in _BOTH), strict=True)
        ],
        "drift": [
            (f"“{prompt}”", f"{moved['pixels']:.3f}", f"{moved['latents']:.2f}")
            for prompt, moved in numbers["drift"].items()
        ],
        "strengths": [(f"{s['strength']:g}", *_rate(s), f"{s['drift']:.3f}") for s in numbers["strengths"]],
        "relearned": [
            (kind, look["steps"], *_rate(look)) for kind, looks in numbers["relearned"].items() for look in looks
        ],
        "inverted": [(kind, *_rate(found)) for kind, found in numbers["inverted"].items()],
    }


_BOTH = ("before", "after")


def _rate(found: dict[str, Any]) -> tuple[str, str, str]:
    """Return rate, interval and number of pictures as text; empty where no judge gave a rate."""
    if "rate" not in found:
        return "", "", ""
    return percent(found["rate"]), f"{percent(found['low'])} to {percent(found['high'])}", str(found["n"])


def _corrected(found: dict[str, Any]) -> str:
    return percent(found["corrected"]) if "corrected" in found else ""


def _judge(judge: dict[str, Any] | None) -> list[tuple[str, str]]:
    if judge is None:
        return []
    rows = [("judge", judge["name"])]
    if judge["accuracy"]:
        found = Accuracy(**judge["accuracy"])
        rows += [
            ("right on normal images", f"{found.normal_right} of {found.normal}"),
            ("right on sensitive images", f"{found.sensitive_right} of {found.sensitive}"),
            ("balanced accuracy", f"{found.balanced:.2f}"),
        ]
    return rows
