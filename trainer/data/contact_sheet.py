"""Contact sheets: the first images of both folders, the top of an audit, and plain grids of pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..common.files import replacing
from ..common.wording import counted
from .folders import Folders, Sample
from .images import read_image

TILE_PX, COLUMNS, ROWS, BAR_PX, LABEL_PX = 96, 8, 3, 26, 18


def save(folders: Folders, target: Path) -> None:
    """Write a PNG: up to 24 unlabeled, then up to 24 sensitive images."""
    save_groups({"unlabeled": folders.unlabeled, "sensitive": [*folders.sensitive, *folders.held_out]}, target)


def save_groups(groups: dict[str, list[Sample]], target: Path) -> None:
    """Write a PNG: up to 24 images of each group under its name. Empty groups are left out."""
    parts = [_part(f"{name}: {counted(len(samples), 'image')}", samples) for name, samples in groups.items() if samples]
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    with replacing(target) as temporary:
        sheet.save(temporary)


def save_ranked(ranked: Sequence[tuple[Path, float]], target: Path) -> None:
    """Write a PNG of images with their scores, the highest first."""
    height = TILE_PX + LABEL_PX
    sheet = Image.new("RGB", (COLUMNS * TILE_PX, height * math.ceil(len(ranked) / COLUMNS)), "white")
    for i, (path, score) in enumerate(ranked):
        x, y = i % COLUMNS * TILE_PX + 2, i // COLUMNS * height + 2
        sheet.paste(Image.fromarray(read_image(path, (TILE_PX - 4, TILE_PX - 4))), (x, y))
        text = f"{i + 1}: {score:.2f}"
        ImageDraw.Draw(sheet).text((x, y + TILE_PX - 4), text, fill="black", font=ImageFont.load_default(12))
    with replacing(target) as temporary:
        sheet.save(temporary)


def _part(label: str, samples: list[Sample]) -> Image.Image:
    shown = samples[: COLUMNS * ROWS]
    image = Image.new("RGB", (COLUMNS * TILE_PX, BAR_PX + TILE_PX * math.ceil(len(shown) / COLUMNS)), "white")
    ImageDraw.Draw(image).text((4, 4), label, fill="black", font=ImageFont.load_default(16))
    for i, sample in enumerate(shown):
        tile = Image.fromarray(read_image(sample.path, (TILE_PX - 4, TILE_PX - 4)))
        image.paste(tile, (i % COLUMNS * TILE_PX + 2, BAR_PX + i // COLUMNS * TILE_PX + 2))
    return image


def grid(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """Arrange [n, h, w, 3] uint8 in one nearly square picture, two white pixels apart."""
    n, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + 2), i % columns * (width + 2)
        sheet[y : y + height, x : x + width] = image
    return Image.fromarray(sheet)


def tiles(path: Path, n: int, columns: int | None = None) -> list[Image.Image]:
    """Return the n pictures of a grid that `save_grid` wrote."""
    columns = columns or math.ceil(math.sqrt(n))
    with Image.open(path) as sheet:
        whole = sheet.convert("RGB")
    width, height = (whole.width + 2) // columns, (whole.height + 2) // math.ceil(n / columns)
    corners = [(i % columns * width, i // columns * height) for i in range(n)]
    return [whole.crop((x, y, x + width - 2, y + height - 2)) for x, y in corners]


def save_grid(images: np.ndarray, path: Path, columns: int | None = None) -> None:
    with replacing(path) as temporary:
        grid(images, columns).save(temporary)
