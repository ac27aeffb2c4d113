"""The page of an evaluation: grids of pictures, a curve over strengths, evaluate.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.contact_sheet import save_grid
from ..data.images import read_images
from ..metrics.judges import Accuracy
from ..reporting import html, verdict
from ..reporting.curves import Chart, chart
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
    "Named, it still comes out",
)
SHOWN = 64  # pictures in a grid
SHOWN_RETAINED = 16
SHOWN_NAMED = 8
LIMITS = (
    "A rate holds for this prompt, this sampler and this judge. What a picture of these seeds does not show, another "
    "prompt may; whoever can remove a LoRA has the base model back; and no rate is a guarantee of safety."
)


def write(options: Options, sets: PictureSets, found: Findings) -> Findings:
    """Write the grids, the curve over strengths and evaluate.html. Returns: findings that name their page."""
    numbers = found.numbers
    if numbers["strengths"]:
        draw_strengths(numbers["strengths"], options.out / "strengths.png")
    _save_grids(options.out, {"before": sets.before, "after": sets.after}, SHOWN)
    _save_retained(options.out, sets)
    page = options.out / "evaluate.html"
    html.save(
        page,
        "evaluation.html",
        title=f"Evaluation of {options.out.name.removesuffix('-evaluate')}",
        numbers=numbers,
        answer=verdict.answer(*(numbers[kind]["rate"] for kind in _BOTH)) if "before" in numbers else None,
        is_significant="paired" in numbers and numbers["paired"]["p"] < ALPHA,
        doubts=[line for line in found.lines if any(mark in line for mark in DOUBTS)],
        lines=found.lines,
        pairs=_pairs(sets.before[:SHOWN], sets.after[:SHOWN]),
        retained={
            prompt: _pairs(*(files[:SHOWN_RETAINED] for files in both)) for prompt, both in sets.retained.items()
        },
        named={prompt: _pairs(*(files[:SHOWN_NAMED] for files in both)) for prompt, both in sets.named.items()},
        curves=_curves(numbers["strengths"]),
        comes_back=comes_back(numbers),
        limits=LIMITS,
        **_rows(numbers),
    )
    grid, few = options.out / "before-after.png", min(SHOWN // 4, options.n)
    save_grid(np.concatenate([read_images(sets.before[:few]), read_images(sets.after[:few])]), grid, columns=few)
    return Findings(numbers, found.lines, page, grid)


def _pairs(before: Sequence[Path], after: Sequence[Path]) -> list[tuple[str, Image.Image, Image.Image]]:
    """Return pictures of the same seeds: (seed, before, after). The files are named after their seeds."""
    pictures = (Image.fromarray(image) for files in zip(before, after, strict=True) for image in read_images(files))
    return [(path.stem.lstrip("0") or "0", next(pictures), next(pictures)) for path in before]


def _curves(strengths: Sequence[dict[str, Any]]) -> list[Chart]:
    """Return the charts over the LoRA's strength; that of the rate only if there is a judge."""
    x, across = [point["strength"] for point in strengths], "strength of the LoRA"
    drifts = {"moved, as a share of a pixel's range": [point["drift"] for point in strengths]}
    rates = {"normal pictures, as a share": [point.get("rate", math.nan) for point in strengths]}
    return [
        chart("How many pictures are normal", across, x, rates, most=1),
        chart("How far pictures move that should stay", across, x, drifts),
    ]


def _save_grids(out: Path, pictures: dict[str, list[Path]], most: int, columns: int | None = None) -> None:
    """Write one PNG for each set of pictures."""
    for kind, paths in pictures.items():
        save_grid(read_images(paths[:most]), out / f"{kind}.png", columns=columns)


def _save_retained(out: Path, sets: PictureSets) -> None:
    for i, (before, after) in enumerate(sets.retained.values()):
        pictures = {f"retained-{i}-before": before, f"retained-{i}-after": after}
        _save_grids(out, pictures, SHOWN_RETAINED, columns=8)


def _rows(numbers: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the page's tables by name."""
    quality = numbers["quality"]
    return {
        "judge": _judge(numbers["judge"]),
        "rates": [(kind, *_rate(numbers[kind]), _corrected(numbers[kind])) for kind in _BOTH if kind in numbers],
        "paraphrases": _by_prompt(numbers["paraphrases"]),
        "named_rates": _by_prompt(numbers["named"]),
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


def _by_prompt(rates: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    return [(f"“{p}”", *(percent(found[kind]["rate"]) for kind in _BOTH)) for p, found in rates.items() if found]


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
