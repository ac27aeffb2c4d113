"""Image files as people have them, with the right colours."""

import importlib
import io
import struct
import zlib

import icc_profiles as icc
import numpy as np
import pytest
from PIL import Image, ImageCms

from trainer.data import decoding
from trainer.data.images import read_image, training_size

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def pixel(path, at=(0, 0)):
    found = decoding.decode(path)
    assert found.image.mode == "RGB"
    return found.image.getpixel(at)


def near(found, wanted, by=2):
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= by, (found, wanted)


# the CSS working group's tests: each of these is the colour `green`, #008000
GREENS = [
    ((0.21604, 0.49418, 0.13151), icc.DISPLAY_P3, icc.srgb_curve()),
    ((0.281363, 0.498012, 0.116746), icc.ADOBE_RGB, icc.gamma(563 / 256)),
]


@pytest.mark.parametrize("colours", GREENS, ids=["display-p3", "adobe-rgb"])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "RGBA", "P"])
def test_a_colour_profile_is_followed(tmp_path, colours, kind):
    values, primaries, tone = colours
    image = Image.new("RGB", (64, 64), tuple(round(255 * v) for v in values))
    image = image.convert(kind) if kind == "RGBA" else image.quantize(4) if kind == "P" else image
    path = tmp_path / f"x.{kind if len(kind) > 2 and kind != 'RGBA' else 'png'}"
    more = {"quality": 100} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}
    image.save(path, icc_profile=icc.rgb(primaries, tone), **more)
    near(pixel(path), GREEN, 3)
    assert decoding.decode(path).ignored == ()
    near(read_image(path, (64, 64))[5, 5].tolist(), GREEN, 3)


def test_an_srgb_profile_changes_nothing(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "x.png", icc_profile=profile)
    found = np.asarray(decoding.decode(tmp_path / "x.png").image).astype(int)
    assert np.abs(found - np.asarray(image)).max() <= 1


def test_a_large_image_is_reduced_before_its_colours_are_converted(tmp_path):
    """Which is ten times quicker, and the same to the eye, even in the brightest colours."""
    rough = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    rough.resize((1200, 900), Image.Resampling.BICUBIC).save(tmp_path / "x.png", icc_profile=icc.rgb(*GREENS[0][1:]))
    assert decoding.decode(tmp_path / "x.png", (100, 75)).image.size == (200, 150)
    whole = decoding.decode(tmp_path / "x.png").image
    assert whole.size == (1200, 900)
    wanted = np.asarray(whole.resize((100, 75), Image.Resampling.LANCZOS)).astype(int)
    differences = np.abs(read_image(tmp_path / "x.png", (100, 75)).astype(int) - wanted)
    assert differences.max() <= 5 and differences.mean() < 0.5


def test_transparency_stays_white_under_a_profile(tmp_path):
    image = Image.new("RGBA", (2, 1), (*[round(255 * v) for v in GREENS[0][0]], 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    image.save(tmp_path / "x.png", icc_profile=icc.rgb(*GREENS[0][1:]))
    near(pixel(tmp_path / "x.png"), GREEN)
    assert pixel(tmp_path / "x.png", (1, 0)) == (255, 255, 255)


def test_grey_with_a_profile_of_its_own_or_of_colours(tmp_path):
    """Linear 0.2140 is sRGB's middle grey; a grey image may also carry an RGB profile."""
    Image.new("L", (4, 4), round(255 * 0.2140)).save(tmp_path / "linear.png", icc_profile=icc.grey(icc.gamma(1)))
    near(pixel(tmp_path / "linear.png"), (128, 128, 128))
    Image.new("L", (4, 4), 100).save(tmp_path / "p3.png", icc_profile=icc.rgb(*GREENS[0][1:]))
    near(pixel(tmp_path / "p3.png"), (100, 100, 100))


def test_cmyk_with_its_profile(tmp_path):
    """Cyan of ISO Coated is Lab 55, -37, -50: sRGB (0, 157, 224) or so; without a profile it would be (0, 255, 255)."""
    white, cyan = (100, 0, 0), (55, -37, -50)
    press = icc.cmyk({(0, 0, 0, 0): white, (1, 0, 0, 0): cyan, (0, 1, 0, 0): (48, 74, -3), (0, 0, 1, 0): (89, -5, 93)})
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image.paste((0, 0, 0, 0), (8, 0, 16, 16))
    image.save(tmp_path / "x.tif", icc_profile=press)
    wanted = lab_to_srgb(*cyan)
    assert wanted[0] == 0 and 140 < wanted[1] < 170 and 210 < wanted[2] < 240
    near(pixel(tmp_path / "x.tif"), wanted, 4)
    near(pixel(tmp_path / "x.tif", (12, 3)), (255, 255, 255))
    image.save(tmp_path / "x.jpg", icc_profile=press, quality=100)
    near(pixel(tmp_path / "x.jpg"), wanted, 5)
    image.save(tmp_path / "plain.tif")
    assert pixel(tmp_path / "plain.tif") == (0, 255, 255)


def lab_to_srgb(lightness, a, b):
    """By the formulas of CIE Lab (D50), Bradford's matrix to sRGB, and its curve."""
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * icc.D50
    matrix = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    linear = (np.array(matrix) @ xyz).clip(0, 1)
    return tuple(np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)))


def test_a_profile_of_another_kind_or_a_broken_one_is_ignored_and_told(tmp_path):
    for name, profile in (("broken", b"no profile"), ("other", icc.cmyk({})), ("cut", icc.rgb(*GREENS[0][1:])[:300])):
        Image.new("RGB", (4, 4), (9, 99, 199)).save(tmp_path / f"{name}.png", icc_profile=profile)
        assert pixel(tmp_path / f"{name}.png") == (9, 99, 199)
        assert decoding.fault(tmp_path / f"{name}.png") == (None, ("the colour profile",))


def with_chunk(path, name, data):
    """Add a chunk to a PNG before its pixels."""
    png = path.read_bytes()
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(png[:33] + chunk + png[33:])


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage!", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\xff\xff", b"", b"II"]
)
def test_broken_exif_data_is_ignored_and_told(tmp_path, exif):
    """Pillow parses it only when asked for, and raises SyntaxError or struct.error then."""
    path = tmp_path / "x.png"
    Image.new("RGB", (4, 8), RED).save(path)
    with_chunk(path, b"eXIf", exif)
    why, ignored = decoding.fault(path)
    assert why is None and set(ignored) <= {"the EXIF orientation"}
    assert pixel(path) == RED
    assert decoding.upright_size(path) == (4, 8)
    assert training_size(path, 512, bucket=True) == (64, 64)


def test_the_exif_data_that_pillow_refuses_is_among_them(tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (4, 8), RED).save(path)
    with_chunk(path, b"eXIf", b"Exif\0\0garbage!")
    with pytest.raises(SyntaxError):
        Image.open(path).getexif()
    assert decoding.fault(path) == (None, ("the EXIF orientation",))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(tmp_path, orientation):
    """The same picture, stored in eight ways: EXIF 2.3, table of 4.6.4 A."""
    seen = np.zeros((8, 16, 3), dtype=np.uint8)
    seen[:4, :8], seen[:4, 8:], seen[4:, :8] = RED, GREEN, BLUE
    turned = np.transpose(seen, (1, 0, 2))
    first = {1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1]}
    stored = {**first, 5: turned, 6: turned[::-1], 7: turned[::-1, ::-1], 8: turned[:, ::-1]}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert (np.asarray(decoding.decode(tmp_path / "x.png").image) == seen).all()
    assert decoding.upright_size(tmp_path / "x.png") == (16, 8)


def test_a_gif_shows_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("x.gif", "x.webp", "x.tif", "x.png"):
        more = {"lossless": True} if name == "x.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **more)
        assert Image.open(tmp_path / name).n_frames == 3
        near(pixel(tmp_path / name), RED)


def test_a_gif_that_is_partly_transparent(tmp_path):
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, *RED])
    image.putpixel((1, 0), 0)
    image.save(tmp_path / "x.gif", transparency=0)
    assert [pixel(tmp_path / "x.gif", (i, 0)) for i in (0, 1)] == [RED, (255, 255, 255)]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.5, 1.5], [0, 128, 255]),  # a highlight
        ([-1.0, float("nan"), 1.0], [0, 0, 255]),
        ([0.0, 128.0, 255.0], [0, 128, 255]),
        ([0.0, 32896.0, 65535.0], [0, 128, 255]),
    ],
)
def test_float_tiff(tmp_path, values, wanted):
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "x.tif")
    assert [pixel(tmp_path / "x.tif", (i, 0))[0] for i in range(3)] == wanted


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_deep_grey(tmp_path, kind):
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=kind)).save(tmp_path / "x.tif")
    assert [pixel(tmp_path / "x.tif", (i, 0)) for i in range(3)] == [(0, 0, 0), (100, 100, 100), (255, 255, 255)]


def test_16_bit_grey_with_a_transparent_value(tmp_path):
    Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    with_chunk(tmp_path / "x.png", b"tRNS", struct.pack(">H", 0))
    assert pixel(tmp_path / "x.png", (1, 0)) == (255, 255, 255)


def bmp(fourth: int, *, has_masks: bool) -> bytes:
    """A 2 x 1 BMP of 32 bits: red, then blue, with or without a mask that calls the fourth byte alpha."""
    pixels = bytes([0, 0, 255, fourth, 255, 0, 0, fourth])
    size = 108 if has_masks else 40
    info = struct.pack("<IiiHHIIiiII", size, 2, 1, 1, 32, 3 if has_masks else 0, len(pixels), 0, 0, 0, 0)
    if has_masks:
        info = (info + struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)).ljust(size, b"\0")
    start = 14 + size
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + pixels


@pytest.mark.parametrize("has_masks", [True, False])
@pytest.mark.parametrize("fourth", [0, 255])
def test_32_bit_bmp(tmp_path, fourth, has_masks):
    """Many programs leave the fourth byte 0: the image is not invisible."""
    (tmp_path / "x.bmp").write_bytes(bmp(fourth, has_masks=has_masks))
    assert [pixel(tmp_path / "x.bmp", (i, 0)) for i in (0, 1)] == [RED, BLUE]


def test_a_bmp_may_be_partly_transparent(tmp_path):
    data = bytearray(bmp(255, has_masks=True))
    data[-1] = 0
    (tmp_path / "x.bmp").write_bytes(data)
    assert [pixel(tmp_path / "x.bmp", (i, 0)) for i in (0, 1)] == [RED, (255, 255, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LAB"])
def test_every_mode_of_a_tiff(tmp_path, mode):
    image = Image.new("LA", (4, 4), (255, 255)) if mode == "LA" else None
    white = {"F": 1.0, "I;16": 65535, "LAB": (255, 128, 128), "CMYK": (0, 0, 0, 0)}
    image = image or Image.new(mode, (4, 4), white.get(mode, 255 if len(mode) == 1 else (255,) * len(mode)))
    if mode == "P":
        image = Image.new("RGB", (4, 4), "white").quantize(2)
    image.save(tmp_path / "x.tif")
    near(pixel(tmp_path / "x.tif"), (255, 255, 255))
    assert decoding.fault(tmp_path / "x.tif") == (None, ())


def test_avif(tmp_path):
    if not decoding.is_readable(".avif"):
        pytest.skip("this Pillow was built without AVIF")
    Image.new("RGB", (64, 64), RED).save(tmp_path / "x.avif", quality=100)
    near(pixel(tmp_path / "x.avif"), RED, 4)


def test_heic_with_its_plugin(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    Image.new("RGB", (64, 64), RED).save(tmp_path / "x.heic", quality=95)
    assert decoding.is_readable(".heic")
    near(pixel(tmp_path / "x.heic"), RED, 6)
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.heic").read_bytes())  # as phones and web sites rename them
    near(pixel(tmp_path / "x.jpg"), RED, 6)


def test_jpeg_xl_with_its_plugin(tmp_path):
    pytest.importorskip("pillow_jxl")
    Image.new("RGB", (64, 64), RED).save(tmp_path / "x.jxl", lossless=True)
    assert decoding.is_readable(".jxl")
    near(pixel(tmp_path / "x.jxl"), RED, 4)


def test_the_content_decides_not_the_name(tmp_path):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "x.webp", lossless=True)
    (tmp_path / "x.webp").rename(tmp_path / "x.png")
    assert pixel(tmp_path / "x.png") == RED


def test_postscript_in_disguise_is_not_run(tmp_path):
    """Pillow would start Ghostscript for it."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), RED).save(buffer, "EPS")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    assert "cannot identify image file" in decoding.fault(tmp_path / "x.png")[0]


def test_any_damage_is_a_sentence_or_harmless(tmp_path):
    """Whatever `fault` lets pass can be read afterwards. A thousand damaged files: cut, or with bytes changed."""
    chance = np.random.default_rng(0)
    picture = Image.fromarray(chance.integers(0, 256, (16, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    kinds = {}
    for name in ("png", "jpeg", "webp", "gif", "tiff", "bmp"):
        buffer = io.BytesIO()
        more = {} if name in ("gif", "bmp") else {"exif": exif, "icc_profile": icc.rgb(*GREENS[1][1:])}
        picture.save(buffer, name, **more)
        kinds[name] = buffer.getvalue()
    path, refused = tmp_path / "x.png", 0
    for i in range(1000):
        data = bytearray(list(kinds.values())[i % len(kinds)])
        if i % 3 == 0:
            del data[int(chance.integers(1, len(data))) :]
        for _ in range(int(chance.integers(1, 5))):
            data[int(chance.integers(len(data)))] = int(chance.integers(256))
        path.write_bytes(data)
        why, _ = decoding.fault(path)
        if why is None:
            assert decoding.decode(path).image.mode == "RGB"
            decoding.upright_size(path)
        else:
            refused += 1
            assert why.startswith(("cannot be read (", "huge"))
    assert 100 < refused < 950


def test_plugins_are_optional(monkeypatch):
    """What is missing is no error."""
    monkeypatch.setitem(importlib.import_module("sys").modules, "pillow_heif", None)
    decoding._formats.cache_clear()
    try:
        assert "PNG" in decoding._formats()
    finally:
        decoding._formats.cache_clear()
