"""Draw a run with Pillow, so that every frontend can show it: loss curve, newest sample, grids, text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (250, 250, 248), (40, 40, 40), (200, 200, 196)
UNLABELED, SENSITIVE = (38, 94, 168), (196, 62, 40)
CURVE = (512, 256)
MARGIN = 36


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # webuis pin Pillow 9.5, whose only font has one size
        return ImageFont.load_default()


def curve(
    unlabeled: Sequence[float | None], sensitive: Sequence[float | None], of: int, size: tuple[int, int] = CURVE
) -> Image.Image:
    """Draw the loss of unlabeled and of sensitive samples by step. Args: of: steps of the whole run, the width."""
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    width, height = size[0] - 2 * MARGIN, size[1] - 2 * MARGIN
    values = [v for v in (*unlabeled, *sensitive) if v is not None]
    top = max(values, default=1.0) * 1.05 or 1.0
    draw.rectangle((MARGIN, MARGIN, MARGIN + width, MARGIN + height), outline=FAINT)
    for series, colour in ((unlabeled, UNLABELED), (sensitive, SENSITIVE)):
        points = [
            (MARGIN + width * i / max(1, of - 1), MARGIN + height * (1 - v / top))
            for i, v in enumerate(_smooth(series))
            if v is not None
        ]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
    draw.text((MARGIN, 10), f"step {len(unlabeled)} of {of}", fill=INK, font=_font(14))
    draw.text((size[0] - 250, 10), "loss of unlabeled", fill=UNLABELED, font=_font(14))
    draw.text((size[0] - 120, 10), "of sensitive", fill=SENSITIVE, font=_font(14))
    draw.text((4, MARGIN - 6), f"{top:.2g}", fill=INK, font=_font(12))
    draw.text((MARGIN - 12, MARGIN + height - 8), "0", fill=INK, font=_font(12))
    return image


def _smooth(series: Sequence[float | None], window: int = 9) -> list[float | None]:
    """Return the running mean: each step has its own random noise levels, so single values jump."""
    found = []
    for i in range(len(series)):
        near = [v for v in series[max(0, i - window + 1) : i + 1] if v is not None]
        found.append(sum(near) / len(near) if near else None)
    return found


def live(
    unlabeled: Sequence[float | None], sensitive: Sequence[float | None], of: int, sample: Path | None
) -> Image.Image:
    """Draw the panel of a training node: the curve, and below it the newest pictures."""
    top = curve(unlabeled, sensitive, of)
    if sample is None or not sample.exists():
        return top
    with Image.open(sample) as picture:
        below = picture.convert("RGB")
    below.thumbnail((CURVE[0], CURVE[0]))
    image = Image.new("RGB", (CURVE[0], CURVE[1] + below.height), PAPER)
    image.paste(top, (0, 0))
    image.paste(below, ((CURVE[0] - below.width) // 2, CURVE[1]))
    return image


def side_by_side(images: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Draw pictures of equal height in a row, each below its label."""
    height = max(image.height for _, image in images)
    bar = max(24, height // 16)
    sheet = Image.new("RGB", (sum(i.width for _, i in images) + 8 * (len(images) - 1), height + bar), PAPER)
    draw, x = ImageDraw.Draw(sheet), 0
    for label, image in images:
        draw.text((x + 4, bar // 6), label, fill=INK, font=_font(int(bar * 0.6)))
        sheet.paste(image, (x, bar))
        x += image.width + 8
    return sheet


def text(lines: Sequence[str]) -> Image.Image:
    """Draw lines of text."""
    font = _font(18)
    width = max([int(font.getlength(line)) for line in lines] or [1])
    image = Image.new("RGB", (width + 2 * MARGIN, 28 * len(lines) + MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((MARGIN, MARGIN // 2 + 28 * i), line, fill=INK, font=font)
    return image


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Draw pictures of equal width below each other."""
    sheet = Image.new("RGB", (images[0].width, sum(i.height + 8 for i in images) - 8), PAPER)
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height + 8
    return sheet
