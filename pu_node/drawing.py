"""Draw a run with Pillow, so that every frontend can show it: loss curve, newest sample, grids, text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK, FAINT = (0x35, 0x35, 0x35), (225, 225, 225), (100, 100, 100)  # the first is that of ComfyUI's nodes
UNLABELED, SENSITIVE = (100, 170, 255), (255, 130, 100)
WIDTH = 512  # of a panel: about the width of a node on the screen, so that its letters keep their size
CURVE = (WIDTH, 200)
TEXT_PX, GAP, PAD = 18, 8, 12
SHEET_LETTERS = 72  # letters are this fraction of a sheet's longer side: a node shows a big sheet small
TILE_GAP = 2  # between the pictures of the trainer's grids
COLUMNS = re.compile(r"\s{2,}")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Labeled = tuple[str, Image.Image]


def _font(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # webuis pin Pillow 9.5, whose only font has one size
        return ImageFont.load_default()


def _line_height(font: Font) -> int:
    return math.ceil(font.getbbox("Ágjy|")[3])


def curve(
    unlabeled: Sequence[float | None], sensitive: Sequence[float | None], of: int, size: tuple[int, int] = CURVE
) -> Image.Image:
    """Draw the loss of unlabeled and of sensitive samples by step. Args: of: steps of the whole run, the width."""
    image = Image.new("RGB", size, BACKGROUND)
    draw, small = ImageDraw.Draw(image), _font(12)
    values = [v for v in (*unlabeled, *sensitive) if v is not None and math.isfinite(v)]
    top = max(values, default=1.0) * 1.05 or 1.0
    left, above = math.ceil(small.getlength(f"{top:.2g}")) + PAD, 2 * PAD + _line_height(_font(14))
    right, below = size[0] - PAD, size[1] - PAD
    draw.rectangle((left, above, right, below), outline=FAINT)
    for series, colour in ((unlabeled, UNLABELED), (sensitive, SENSITIVE)):
        points = [
            (left + (right - left) * i / max(1, of - 1), above + (below - above) * (1 - v / top))
            for i, v in enumerate(_smooth(series))
            if v is not None
        ]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
    draw.text((PAD // 2, above), f"{top:.2g}", fill=INK, font=small)
    draw.text((left - PAD // 2 - small.getlength("0"), below - _line_height(small)), "0", fill=INK, font=small)
    _legend(draw, len(unlabeled), of, size[0])
    return image


def _legend(draw: ImageDraw.ImageDraw, step: int, of: int, width: int) -> None:
    """Write the line above the curves: the step at the left, the curves' names at the right."""
    font, x = _font(14), float(width - PAD)
    for words, colour in (("of sensitive", SENSITIVE), ("loss of unlabeled", UNLABELED)):
        x -= font.getlength(words)
        draw.text((x, PAD), words, fill=colour, font=font)
        x -= 2 * PAD
    draw.text((PAD, PAD), f"step {step} of {of}", fill=INK, font=font)


def _smooth(series: Sequence[float | None], window: int = 9) -> list[float | None]:
    """Return the running mean: each step has its own random noise levels, so single values jump."""
    found = []
    for i in range(len(series)):
        near = [v for v in series[max(0, i - window + 1) : i + 1] if v is not None and math.isfinite(v)]
        found.append(sum(near) / len(near) if near else None)
    return found


def live(
    unlabeled: Sequence[float | None], sensitive: Sequence[float | None], of: int, sample: Path | None
) -> Image.Image:
    """Draw the panel of a training node: the curve, and below it the newest pictures as wide as the panel."""
    top = curve(unlabeled, sensitive, of)
    if sample is None or not sample.exists():
        return top
    with Image.open(sample) as picture:
        below = picture.convert("RGB")
    scale = WIDTH / max(below.size)
    below = below.resize((round(below.width * scale), round(below.height * scale)), Image.Resampling.LANCZOS)
    image = Image.new("RGB", (WIDTH, top.height + below.height), BACKGROUND)
    image.paste(top, (0, 0))
    image.paste(below, ((WIDTH - below.width) // 2, top.height))
    return image


def tiles(grid: Image.Image, side: int) -> list[Image.Image]:
    """Return the pictures of a grid of the trainer: squares, two white pixels apart, the last places may be empty.

    Args: side: of a picture. Returns: the grid itself if it holds others.
    """
    step = side + TILE_GAP
    if (grid.width + TILE_GAP) % step or (grid.height + TILE_GAP) % step:
        return [grid]
    places = [(x, y) for y in range(0, grid.height, step) for x in range(0, grid.width, step)]
    found = [grid.crop((x, y, x + side, y + side)) for x, y in places]
    while len(found) > 1 and found[-1].getextrema() == ((255, 255),) * 3:
        found.pop()
    return found


def on_dark(plot: Image.Image) -> Image.Image:
    """Return a plot that was drawn on white in the colours of ComfyUI's nodes: white and black change, hues stay."""
    light, *hue = plot.convert("YCbCr").split()
    dark, bright = BACKGROUND[0], INK[0]
    return Image.merge("YCbCr", [light.point(lambda v: bright - v * (bright - dark) // 255), *hue]).convert("RGB")


def side_by_side(images: Sequence[Labeled]) -> Image.Image:
    """Draw pictures in a row, each below its label."""
    return _sheet([images])


def pairs(found: Sequence[tuple[Labeled, Labeled]]) -> Image.Image:
    """Draw pairs of pictures, each below its label; several pairs in a row where there are many."""
    (_, left), (_, right) = found[0]
    shape = (left.width + right.width) / max(left.height, right.height)
    columns = min(len(found), max(1, round(math.sqrt(len(found) / shape))))
    rows = [found[i : i + columns] for i in range(0, len(found), columns)]
    return _sheet([[one for pair in row for one in pair] for row in rows])


def _sheet(rows: Sequence[Sequence[Labeled]]) -> Image.Image:
    """Draw rows of cells of one size: a label, and a picture below it. A cell is never narrower than its label."""
    cells = [cell for row in rows for cell in row]
    columns = max(len(row) for row in rows)
    picture = [max(getattr(image, side) for _, image in cells) for side in ("width", "height")]
    longest = max((picture[0] + GAP) * columns, (picture[1] + GAP) * len(rows))
    font = _font(max(14, longest // SHEET_LETTERS))
    bar = _line_height(font) + GAP
    width = max(picture[0], *(math.ceil(font.getlength(label)) + GAP for label, _ in cells))
    size = (columns * (width + GAP) - GAP, len(rows) * (picture[1] + bar + GAP) - GAP)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        for j, (label, image) in enumerate(row):
            x, y = j * (width + GAP), i * (picture[1] + bar + GAP)
            draw.text((x + GAP // 2, y + GAP // 2), label, fill=INK, font=font)
            sheet.paste(image, (x, y + bar))
    return sheet


def text(lines: Sequence[str]) -> Image.Image:
    """Draw lines of text, as wide as a panel: long ones are wrapped, what follows two spaces stands at the right."""
    font = _font(TEXT_PX)
    found = [part for line in lines for part in _wrapped(line, font, WIDTH - 2 * PAD)]
    step = _line_height(font) + GAP // 2
    image = Image.new("RGB", (WIDTH, step * max(1, len(found)) + 2 * PAD), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for i, (left, right) in enumerate(found):
        draw.text((PAD, PAD + step * i), left, fill=INK, font=font)
        draw.text((WIDTH - PAD - font.getlength(right), PAD + step * i), right, fill=INK, font=font)
    return image


def _wrapped(line: str, font: Font, width: int) -> list[tuple[str, str]]:
    """Return a line as (left, right) columns, each narrower than width together; a long left one as several lines."""
    left, right = (*COLUMNS.split(line.strip(), maxsplit=1), "")[:2]
    if font.getlength(f"{left}  {right}") <= width:
        return [(left, right)]
    found, rest = [], f"{left} {right}".strip()
    while rest:
        count = next(n for n in range(len(rest), 0, -1) if n == 1 or font.getlength(rest[:n]) <= width)
        if count < len(rest) and " " in rest[1 : count + 1]:
            count = rest.rindex(" ", 1, count + 1)
        found.append((rest[:count].strip(), ""))
        rest = rest[count:].strip()
    return found
