"""Draw the pack's icon and banner for the Comfy registry, beside this file: a grid of dots, the odd ones fading.

python docs/pictures/draw_icon.py
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
DARK, NORMAL, SENSITIVE, INK = (32, 34, 42), (100, 170, 255), (255, 130, 100), (235, 235, 235)
FADING = {
    (1, 0): 0.9,
    (2, 1): 0.6,
    (0, 2): 0.35,
    (3, 2): 0.2,
    (1, 3): 0.12,
}  # sensitive dots: column, row -> how much is left
ICON, BANNER, FINER = (400, 400), (1260, 540), 4  # the registry: at most 400 x 400, and 21:9


def dots(side: int) -> Image.Image:
    """Return a square with four by four dots."""
    image = Image.new("RGB", (side, side), DARK)
    draw, cell = ImageDraw.Draw(image), side / 4.5
    for x, y in ((x, y) for x in range(4) for y in range(4)):
        left = FADING.get((x, y))
        colour = (
            NORMAL if left is None else tuple(round(d + (s - d) * left) for d, s in zip(DARK, SENSITIVE, strict=True))
        )
        centre, radius = [cell * (0.75 + v) for v in (x, y)], cell * 0.36
        draw.ellipse((*(v - radius for v in centre), *(v + radius for v in centre)), fill=colour)
    return image


def banner() -> Image.Image:
    """Return the icon with name and purpose beside it."""
    width, height = (FINER * side for side in BANNER)
    image = Image.new("RGB", (width, height), DARK)
    image.paste(dots(height), (0, 0))
    draw = ImageDraw.Draw(image)
    draw.text((height * 1.05, height * 0.3), "PU Unlearn", fill=INK, font=ImageFont.load_default(height * 0.2))
    words = "Stable Diffusion learns what not to generate"
    draw.text((height * 1.06, height * 0.58), words, fill=NORMAL, font=ImageFont.load_default(height * 0.058))
    return image


if __name__ == "__main__":
    drawn = {"icon": dots(FINER * ICON[0]).resize(ICON), "banner": banner().resize(BANNER)}
    for name, image in drawn.items():
        image.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
            HERE / f"{name}.png", optimize=True
        )
