"""Folders as users have them: formats, captions, broken files."""

import numpy as np
import pytest
from PIL import Image

from trainer.common.errors import UserError
from trainer.data import folders, images


def picture(seed=0, size=(80, 64)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def piles(tmp_path):
    for name, n in (("u", 4), ("s", 5)):
        (tmp_path / name).mkdir()
        for i in range(n):
            picture(i).save(tmp_path / name / f"{i}.png")
    return tmp_path / "u", tmp_path / "s"


def scan(u, s, **changes):
    settings = {"prompt": "a photo", "seed": 0, **changes}
    return folders.scan(u, s, seed=settings.pop("seed"), reading=folders.Reading(**settings))


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp"])
def test_formats(tmp_path, suffix):
    picture().save(tmp_path / f"x.{suffix}")
    assert images.read_image(tmp_path / f"x.{suffix}", (64, 64)).shape == (64, 64, 3)
    assert len(scan(tmp_path, None).unlabeled) == 1


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (64, 64), "black")
    image.paste("red", (0, 0, 64, 16))
    exif = image.getexif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the top becomes the right
    image.save(tmp_path / "x.png", exif=exif)
    found = images.read_image(tmp_path / "x.png", (64, 64))
    assert found[32, 60].tolist() == [255, 0, 0]
    assert found[4, 4].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path, mode):
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0)).convert(mode)
    if mode == "P":
        image = Image.new("P", (64, 64), 0)
        image.putpalette([255, 0, 0])
        image.info["transparency"] = 0
    image.save(tmp_path / "x.png", **({"transparency": 0} if mode == "P" else {}))
    assert (images.read_image(tmp_path / "x.png", (64, 64)) == 255).all()


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((64, 64), 128 * 257, dtype=np.uint16)).save(tmp_path / "x.png")
    assert (images.read_image(tmp_path / "x.png", (64, 64)) == 128).all()


def test_grey_and_palette_and_cmyk(tmp_path):
    Image.new("L", (64, 64), 77).save(tmp_path / "grey.png")
    Image.new("RGB", (64, 64), (1, 2, 3)).quantize(4).save(tmp_path / "palette.png")
    Image.new("CMYK", (64, 64), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert images.read_image(tmp_path / "grey.png", (64, 64))[0, 0].tolist() == [77] * 3
    assert images.read_image(tmp_path / "palette.png", (64, 64))[0, 0].tolist() == [1, 2, 3]
    assert (images.read_image(tmp_path / "cmyk.jpg", (64, 64)) > 250).all()


def test_centre_crop(tmp_path):
    image = Image.new("RGB", (192, 64), "black")
    image.paste("white", (64, 0, 128, 64))
    image.save(tmp_path / "x.png")
    assert (images.read_image(tmp_path / "x.png", (64, 64)) == 255).all()


def test_views(tmp_path):
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8), (64, 128))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "x.png")
    plain, *crops = (images.read_image(tmp_path / "x.png", (64, 64), images.View(crop=c)) for c in range(5))
    assert plain[0, 0, 0] == 32
    for crop in crops:
        width = int(crop[0, -1, 0]) - int(crop[0, 0, 0])
        assert 0.8 * 63 - 2 <= width <= 63
    assert len({crop.tobytes() for crop in crops}) == 4
    mirrored = images.read_image(tmp_path / "x.png", (64, 64), images.View(flip=True))
    assert (mirrored == plain[:, ::-1]).all()


def damage(folder, kind):
    path = folder / "1.png"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "text":
        path.write_text("<html>not found</html>")
    else:
        Image.new("1", (11_000, 10_000)).save(path)
    return {"empty": "0 bytes", "truncated": "cannot be read", "text": "cannot be read", "huge": "huge"}[kind]


@pytest.mark.parametrize("kind", ["empty", "truncated", "text", "huge"])
def test_a_bad_image_is_named_and_only_skipped_when_asked(piles, kind):
    message = damage(piles[0], kind)
    with pytest.raises(UserError, match=rf"1\.png: .*{message}") as error:
        scan(*piles)
    assert "--skip-bad-images" in str(error.value)
    found = scan(*piles, skip_bad_images=True)
    assert len(found.unlabeled) == 3
    assert [message in s for s in found.skipped] == [True]


def test_empty_folder_says_what_it_looked_for(tmp_path, piles):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no images \(looked for \.png"):
        scan(tmp_path / "empty", piles[1])


def test_captions(piles):
    (piles[0] / "0.txt").write_text("  a cat\nasleep \n", encoding="utf-8")
    (piles[0] / "1.caption").write_text("\ufeffa dog", encoding="utf-8")
    (piles[0] / "2.txt").write_text("\n")
    (piles[1] / "0.txt").write_text("a fox")
    found = scan(*piles, sensitive_prompt="a wolf")
    assert [s.caption for s in found.unlabeled] == ["a cat asleep", "a dog", "a photo", "a photo"]
    own = {s.path.name: s.caption for s in [*found.sensitive, *found.held_out]}
    assert own == {"0.png": "a fox", **{f"{i}.png": "a wolf" for i in range(1, 5)}}


def test_missing_captions_are_an_error(piles):
    (piles[0] / "0.txt").write_text("a cat")
    with pytest.raises(UserError, match=r"3 of 4 images have no caption .*--prompt"):
        scan(*piles, prompt=None)


def test_caption_in_another_encoding(piles):
    (piles[0] / "0.txt").write_bytes("häh".encode("latin-1"))
    with pytest.raises(UserError, match=r"0\.txt: not UTF-8"):
        scan(*piles)


def test_two_sensitive_images_are_held_out(piles):
    found = scan(*piles)
    assert len(found.held_out) == 2
    assert len(found.sensitive) == 3
    assert not {s.path for s in found.held_out} & {s.path for s in found.sensitive}
    assert len({scan(*piles, seed=seed).held_out[0].path for seed in range(8)}) > 1


def test_too_few_sensitive_images(piles):
    for i in range(2, 5):
        (piles[1] / f"{i}.png").unlink()
    with pytest.raises(UserError, match="2 sensitive images; at least 3"):
        scan(*piles)


@pytest.mark.parametrize(
    ("size", "resolution", "wanted"),
    [
        ((512, 512), 512, (512, 512)),
        ((3000, 2000), 512, (576, 384)),
        ((2000, 3000), 512, (384, 576)),
        ((1920, 1080), 512, (640, 384)),
        ((4000, 500), 512, (1408, 128)),
        ((300, 300), 512, (256, 256)),  # not scaled up
        ((500, 400), 512, (448, 384)),
        ((64, 64), 64, (64, 64)),
        ((4000, 70), 256, (1024, 64)),
        ((20, 30), 512, (64, 64)),  # nothing smaller
    ],
)
def test_buckets(size, resolution, wanted):
    assert images.bucket_of(*size, resolution) == wanted


def test_buckets_keep_their_promises():
    """Multiples of 64, no more pixels than asked for, never scaled up, little cut off."""
    rng = np.random.default_rng(0)
    for width, height in rng.integers(64, 4000, (500, 2)):
        for resolution in (256, 512, 768):
            w, h = images.bucket_of(int(width), int(height), resolution)
            assert w % 64 == h % 64 == 0
            assert w * h <= resolution**2
            assert w <= width and h <= height
            if min(w, h) >= 256:
                assert 0.75 < (w / h) / (width / height) < 1.34


def test_training_size_follows_the_upright_image(tmp_path):
    turned = picture(size=(300, 200))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "x.png", exif=exif)
    assert images.training_size(tmp_path / "x.png", 512, bucket=True) == (192, 256)
    assert images.training_size(tmp_path / "x.png", 512, bucket=False) == (512, 512)
    assert images.read_image(tmp_path / "x.png", (192, 256)).shape == (256, 192, 3)


def test_excluded_images_are_left_out_by_name_or_path(piles, tmp_path):
    plain = scan(*piles)
    first, second = plain.unlabeled[0].path, plain.unlabeled[1].path
    file = tmp_path / "exclude.txt"
    file.write_text(f"{first}\n\n{second.name}\n", encoding="utf-8")
    found = scan(*piles, exclude=file)
    assert found.unlabeled == plain.unlabeled[2:]
    assert found.skipped == [f"{path}: --exclude names it" for path in (first, second)]
    file.write_text("nobody.png\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"names nobody\.png, which is not among the unlabeled images"):
        scan(*piles, exclude=file)
    file.write_text("".join(f"{s.path}\n" for s in plain.unlabeled), encoding="utf-8")
    with pytest.raises(UserError, match="names every unlabeled image"):
        scan(*piles, exclude=file)
    with pytest.raises(UserError, match="--exclude: cannot read"):
        scan(*piles, exclude=tmp_path / "none.txt")
