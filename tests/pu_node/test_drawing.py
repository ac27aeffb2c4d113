"""Drawings: every text lies inside its picture and on no other text, at any size and number of pictures."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pu_node import comfy_host, drawing

PLAN = """micro-batch 2, weights fp16, arithmetic fp16, 14 of 25 parts checkpointed, 3 blocks in CPU memory
  frozen weights                  1885 MiB
  CUDA itself (counted as)         400 MiB
fits into 4.0 GiB""".splitlines()


@pytest.fixture
def boxes(monkeypatch):
    """The boxes (left, top, right, bottom) of all text that is drawn, by text in order."""
    found = []
    plain = ImageDraw.ImageDraw.text

    def text(self, xy, words, font=None, **rest):
        left, top, right, bottom = font.getbbox(words)
        if words:
            found.append((words, (xy[0] + left, xy[1] + top, xy[0] + right, xy[1] + bottom)))
        plain(self, xy, words, font=font, **rest)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def assert_fits(boxes, picture):
    for words, (left, top, right, bottom) in boxes:
        assert left >= 0 and top >= 0 and right <= picture.width and bottom <= picture.height, words
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one, other)


def is_background(picture, x, y):
    return picture.getpixel((x, y)) == (0x35, 0x35, 0x35)


@pytest.mark.parametrize("px", [64, 256, 512])
@pytest.mark.parametrize("count", [1, 3, 4, 16])
def test_labels_of_pairs_fit(boxes, px, count):
    red, green = (200, 0, 0), (0, 200, 0)
    left, right = (Image.new("RGB", (px, px), colour) for colour in (red, green))
    first = 2**32 - 17  # the longest label
    sheet = drawing.pairs([((f"seed {first + i}: before", left), ("after", right)) for i in range(count)])
    assert [words for words, _ in boxes] == [w for i in range(count) for w in (f"seed {first + i}: before", "after")]
    assert_fits(boxes, sheet)
    pixels = np.asarray(sheet)
    for colour in (red, green):  # nothing hides a pixel of a picture
        assert (pixels == colour).all(-1).sum() == count * px * px
    assert max(sheet.size) < 4 * min(sheet.size)
    letters = boxes[0][1][3] - boxes[0][1][1]
    assert letters >= max(10, max(sheet.size) / 110)  # seen in a node, which shows the sheet some 600 pixels wide


def test_pictures_of_unequal_sizes_stand_side_by_side(boxes):
    sheet = drawing.side_by_side([("before", Image.new("RGB", (196, 196))), ("after", Image.new("RGB", (64, 300)))])
    assert_fits(boxes, sheet)
    assert sheet.width == 2 * 196 + drawing.GAP and is_background(sheet, sheet.width - 1, sheet.height - 1)


def test_the_plan_is_a_table_of_a_nodes_width(boxes):
    picture = drawing.text(PLAN)
    assert_fits(boxes, picture)
    assert picture.width == 512 and is_background(picture, 0, 0)
    words = [words for words, _ in boxes]
    assert " ".join(words[: words.index("frozen weights")]) == PLAN[0]
    rights = {right for words, (_, _, right, _) in boxes if words.endswith("MiB")}
    assert len(rights) == 1 or max(rights) - min(rights) <= 1


def test_a_word_that_is_wider_than_the_picture_is_cut_into_lines(boxes):
    path = "/a/very/long/folder" * 12
    assert_fits(boxes, drawing.text([path]))
    assert "".join(words for words, _ in boxes) == path


@pytest.mark.parametrize(
    ("side", "height"), [((196, 196), 512), ((64, 64), 512), ((1024, 1024), 512), ((800, 400), 256)]
)
def test_the_panel_is_filled_from_side_to_side(boxes, tmp_path, side, height):
    Image.new("RGB", side, "red").save(tmp_path / "sample.png")
    panel = drawing.live([0.3, None, 0.2], [1e-5, 123456.0, 0.1], 100_000, tmp_path / "sample.png")
    assert_fits(boxes, panel)
    assert panel.size == (512, 200 + height) and max(panel.size) <= comfy_host.PREVIEW_PX
    assert panel.getpixel((0, 200 + height // 2)) == panel.getpixel((511, 200 + height // 2)) == (255, 0, 0)
    assert is_background(panel, 0, 0) and is_background(panel, 511, 199)


def test_a_tall_sample_is_centred(tmp_path):
    Image.new("RGB", (200, 400), "red").save(tmp_path / "sample.png")
    panel = drawing.live([0.3], [0.2], 10, tmp_path / "sample.png")
    assert panel.size == (512, 712)
    assert is_background(panel, 0, 500) and panel.getpixel((256, 500)) == (255, 0, 0)


def test_without_a_sample_the_panel_is_the_curve():
    assert drawing.live([], [], 600, None).size == (512, 200)


def test_a_loss_that_is_not_finite_does_not_hide_the_others():
    lines = [drawing.curve([0.5, 0.5, bad, 0.5], [None] * 4, 4) for bad in (None, float("nan"), float("inf"))]
    assert all(np.array_equal(line, lines[0]) for line in lines)
    assert (np.asarray(lines[0]) == drawing.UNLABELED).all(-1).any()


def test_a_plot_on_white_takes_the_nodes_colours():
    plot = Image.new("RGB", (3, 1), "white")
    plot.putpixel((1, 0), (0, 0, 0))
    plot.putpixel((2, 0), (31, 119, 180))  # matplotlib's first line
    white, black, blue = (drawing.on_dark(plot).getpixel((x, 0)) for x in range(3))
    assert white == drawing.BACKGROUND
    assert black == drawing.INK
    assert blue[2] > 200 > 120 > blue[0]
