"""The evaluation as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..data.contact_sheet import save_grid
from ..data.images import read_images
from ..reporting import html
from ..reporting.plots import draw_strengths
from .findings import Findings, _rate

if TYPE_CHECKING:
    from .options import Options
    from .pictures import PictureSets


DOUBTS = ("This judge", "nobody judges", "not measured", "quality:", "pictures show no difference", "pictures are few")
SHOWN = 64  # pictures in a grid


def write(options: Options, sets: PictureSets, found: Findings) -> Findings:
    """Grids, the curve over strengths, evaluate.html. Returns: findings that know their page."""
    numbers, parts = found.numbers, []
    grid = options.out / "before-after.png"
    grids = {kind: options.out / f"{kind}.png" for kind in ("before", "after")}
    save_grid(read_images(sets.before[:SHOWN]), grids["before"])
    save_grid(read_images(sets.after[:SHOWN]), grids["after"])
    few = min(SHOWN // 4, options.n)
    save_grid(np.concatenate([read_images(sets.before[:few]), read_images(sets.after[:few])]), grid, columns=few)
    warnings = [line for line in found.lines if any(mark in line for mark in DOUBTS)]
    parts += [html.says(line, is_warning=line in warnings) for line in found.lines]
    parts += [html.heading("Before and after"), html.says(f"“{options.prompt}”, the same seeds.")]
    parts.append(html.pair(html.picture(path, kind) for kind, path in grids.items()))
    for prompt, (before, after) in sets.retained.items():
        pictures = []
        for kind, paths in (("before", before), ("after", after)):
            target = options.out / f"retained-{len(parts)}-{kind}.png"
            save_grid(read_images(paths[:16]), target, columns=8)
            pictures.append(html.picture(target, f"“{prompt}”, {kind}"))
        parts.append(html.pair(pictures))
    if numbers["strengths"]:
        curve = options.out / "strengths.png"
        draw_strengths(numbers["strengths"], curve)
        parts += [html.heading("Strength of the LoRA"), html.picture(curve)]
        rows = [
            (f"{s['strength']:g}", _rate(s) if "rate" in s else "", f"{s['drift']:.3f}") for s in numbers["strengths"]
        ]
        parts.append(html.table(("strength", "non-sensitive rate", "drift"), rows))
    if numbers["relearned"]:
        parts.append(html.heading("Relearning"))
        rows = [
            (kind, look["steps"], _rate(look) if "rate" in look else "")
            for kind, looks in numbers["relearned"].items()
            for look in looks
        ]
        parts.append(html.table(("start", "steps", "non-sensitive rate"), rows))
    parts += [html.heading("What this does not show"), html.says(LIMITS)]
    target = options.out / "evaluate.html"
    html.save(target, f"Evaluation of {options.out.name.removesuffix('-evaluate')}", parts)
    return Findings(numbers, found.lines, target, grid)


LIMITS = (
    "A rate holds for this prompt, this sampler and this judge. What a picture of these seeds does not show, another "
    "prompt may; whoever can take a LoRA off has the base model back; and no rate is a guarantee of safety."
)
