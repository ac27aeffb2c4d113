"""What a folder holds: images of every kind and depth, and a word about everything else."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from trainer.common.errors import UserError
from trainer.config.train_config import TrainConfig
from trainer.data import decoding, inputs
from trainer.data.folders import Reading
from trainer.data.folders import scan as scan_folders
from trainer.data.listing import list_folder


def scan(unlabeled, sensitive, **changes):
    return scan_folders(unlabeled, sensitive, Reading(**{"prompt": "p", **changes}), seed=0)


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)


def found(folder, *, is_recursive=True, apart=None):
    listing = list_folder(folder, is_recursive=is_recursive, apart=apart or {})
    return [path.relative_to(folder).as_posix() for path in listing.images], listing.notes


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JPG", "tif", "TIFF", "gif", "dib", "ppm", "tga", "jp2"])
def test_what_pillow_reads_is_read(tmp_path, suffix):
    kind = {"jfif": "jpeg", "jpe": "jpeg", "dib": "dib", "jp2": "jpeg2000"}.get(suffix)
    Image.new("RGB", (64, 64), "red").save(tmp_path / f"x.{suffix}", kind)
    folders = scan(tmp_path, None)
    assert [s.path.name for s in folders.unlabeled] == [f"x.{suffix}"]
    assert folders.skipped == folders.notes == []


def test_sub_folders(tmp_path):
    for name in ("b.png", "a/1.png", "a/deep/2.png", "x.png/3.png"):
        picture(tmp_path / name)
    assert found(tmp_path) == (["a/1.png", "a/deep/2.png", "b.png", "x.png/3.png"], [])
    flat = ["b.png"], ["folders that were not read: a (--no-recursive), x.png (--no-recursive)"]
    assert found(tmp_path, is_recursive=False) == flat


def test_what_was_not_used_is_counted_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_formats", lambda: ("PNG",))
    picture(tmp_path / "a.png")
    for i in range(9):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / f"{i}.HEIC").write_bytes(b"x")
    for name in ("a.zip", "b.zip", "c.zip", "a.jxl", "noted.txt", "noted.caption", "README", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "a.caption").write_text("a second one, of the same image")
    assert found(tmp_path) == (
        ["a.png"],
        [
            "17 files were not used: 9 .heic (pip install pillow-heif), 3 .zip, 1 .png (hidden), 1 without a suffix, "
            "1 .jxl (pip install pillow-jxl-plugin), 1 .caption (no image of that name), 1 .txt (no image of that name)"
        ],
    )


def test_one_file(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.zip").write_bytes(b"x")
    assert found(tmp_path)[1] == ["1 file was not used: 1 .zip"]


def test_a_systems_own_files_need_no_mention(tmp_path):
    picture(tmp_path / "name.png")
    for name in (
        "._name.png",
        "._name.txt",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "Icon\r",
        ".nomedia",
        "empty.npz",
    ):
        (tmp_path / name).write_bytes(b"" if name == "empty.npz" else b"\0\x05\x16\7")
    (tmp_path / "__MACOSX").mkdir()
    shutil.copy(tmp_path / "._name.png", tmp_path / "__MACOSX" / "x.png")
    assert found(tmp_path) == (["name.png"], [])


def test_hidden_folders_are_named(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / ".thumbnails" / "a.png")
    assert found(tmp_path) == (["a.png"], ["folders that were not read: .thumbnails (hidden)"])


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links(tmp_path):
    folder, other = tmp_path / "f", tmp_path / "other"
    picture(folder / "a.png")
    picture(other / "b.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "loop").symlink_to(folder)
    (folder / "more").symlink_to(other)
    (folder / "more again").symlink_to(other)
    os.mkfifo(folder / "pipe.png")
    assert found(folder) == (
        ["a.png", "more/b.png"],
        ["2 files were not used: 1 .png (a link to nothing), 1 .png (no file)"],
    )


def test_nothing_but_what_cannot_be_used(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"x")
    picture(tmp_path / ".x" / "a.png")
    with pytest.raises(
        UserError, match=r"no images \(looked for \.png .*\)\. Put the images to learn from here\. "
    ) as no:
        found(tmp_path)
    assert str(no.value).endswith("1 file was not used: 1 .zip. Folders that were not read: .x (hidden).")


@pytest.fixture
def kohyas(tmp_path):
    """kohya's layout: 3_cats with two images, 1_dogs with one; folders whose numbers are an order or a year; loose."""
    names = ("3_cats/a.png", "3_cats/more/b.png", "1_dogs/c.png", "02_x/d.png", "2024_y/e.png", "f.png", "20/g.png")
    for i, name in enumerate(names):
        picture(tmp_path / "u" / name, i)
    return tmp_path / "u"


def test_numbers_of_kohyas_folders_are_repeats(kohyas):
    wanted = {"a.png": 3, "b.png": 3, "c.png": 1, "d.png": 1, "e.png": 1, "f.png": 1, "g.png": 1}
    assert {s.path.name: s.repeats for s in scan(kohyas, None).unlabeled} == wanted
    plain = scan(kohyas, None, has_repeats=False)
    assert {s.repeats for s in plain.unlabeled} == {1}


def test_repeats_are_said(kohyas):
    config = TrainConfig(unlabeled=kohyas, prompt="p")
    said = "unlabeled: shown as often as the names of sub-folders say: 2 images 3 times, 5 images once"
    assert f"{said} (--no-folder-repeats: all the same)" in inputs.describe(config, inputs.find(config))
    plain = config.model_copy(update={"folder_repeats": False})
    assert not [line for line in inputs.describe(plain, inputs.find(plain)) if "as often" in line]


def test_settings_reach_the_folders(kohyas):
    config = TrainConfig(unlabeled=kohyas, prompt="p", caption_prefix="a", caption_suffix="b", recursive=False)
    found = inputs.find(config)
    assert [(s.path.name, s.caption) for s in found.unlabeled] == [("f.png", "a p b")]
    inside = TrainConfig(unlabeled=kohyas, prompt="p", output_dir=kohyas / "3_cats")
    assert inputs.find(inside).notes == ["unlabeled: folders that were not read: 3_cats (the output folder)"]


def test_the_data_command_tells_what_a_training_would(kohyas, trainer):
    (kohyas / "x.zip").write_bytes(b"x")
    found = trainer("data", "--base", "builtin", "--unlabeled", kohyas, "--objective", "unsupervised", "--prompt", "p")
    assert found.returncode == 0, found.stderr
    assert "unlabeled: 1 file was not used: 1 .zip" in found.stdout


def test_one_folder_in_the_other_is_not_part_of_it(tmp_path):
    folder = tmp_path / "photos"
    for i in range(4):
        picture(folder / f"{i}.png", i)
        picture(folder / "bad" / f"{i}.png", 10 + i)
        picture(folder / "output" / "run" / f"{i}.png", 20 + i)
    folders = scan(folder, folder / "bad", apart={folder / "output": "the output folder"})
    assert {s.path.parent for s in folders.unlabeled} == {folder}
    assert len([*folders.sensitive, *folders.held_out]) == 4
    assert folders.notes == [
        "unlabeled: folders that were not read: bad (the folder of sensitive images), output (the output folder)"
    ]


def test_copies_are_told_within_a_folder_and_across(tmp_path):
    for i in range(4):
        picture(tmp_path / "u" / f"{i}.png", i)
        picture(tmp_path / "s" / f"{i}.png", 10 + i)
    shutil.copy(tmp_path / "u" / "1.png", tmp_path / "u" / "copy.png")
    shutil.copy(tmp_path / "s" / "2.png", tmp_path / "u" / "sub.png")
    shutil.copy(tmp_path / "s" / "2.png", tmp_path / "s" / "again.png")
    assert scan(tmp_path / "u", tmp_path / "s").notes == [
        "1 image is in both folders, unlabeled and sensitive: "
        "unlabeled/sub.png = sensitive/2.png = sensitive/again.png",
        "unlabeled: 1 image is a copy of another: unlabeled/1.png = unlabeled/copy.png",
        "sensitive: 1 image is a copy of another: sensitive/2.png = sensitive/again.png",
    ]


def test_what_is_ignored_of_images_and_cleaned_of_captions_is_told(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", i)
    image = Image.open(tmp_path / "1.png")
    image.save(tmp_path / "1.png", icc_profile=b"broken")
    (tmp_path / "0.txt").write_bytes("a cat".encode("utf-16"))
    (tmp_path / "1.TXT").write_text("a (dog:1.2), , asleep")
    folders = scan(tmp_path, None, caption_prefix="sks", caption_suffix="photo")
    assert [s.caption for s in folders.unlabeled] == ["sks a cat photo", "sks a (dog:1.2), asleep photo", "sks p photo"]
    assert folders.notes == [
        "1 image has damaged metadata, read without the colour profile (1.png)",
        "unlabeled: caption files that were cleaned: 1 read as UTF-16, 1 with empty tags",
        "1 caption has marks of user interfaces, such as (dog:1.2): they are learned as plain letters here, not as "
        "weights or choices",
    ]


def test_excluded_images_of_sub_folders(tmp_path):
    for i, name in enumerate(("a/1.png", "b/1.png", "2.png", "3.png")):
        picture(tmp_path / "u" / name, i)
    file = tmp_path / "exclude.txt"

    def left(line):
        file.write_text(f"{line}\n")
        kept = scan(tmp_path / "u", None, exclude=file).unlabeled
        return [s.path.relative_to(tmp_path / "u").as_posix() for s in kept]

    assert left("b/1.png") == left(tmp_path / "u" / "b" / "1.png") == ["2.png", "3.png", "a/1.png"]
    assert left("elsewhere/2.png") == left("2.png") == ["3.png", "a/1.png", "b/1.png"]
    assert left("1.png") == ["2.png", "3.png"]
    with pytest.raises(UserError, match=r"elsewhere/1\.png, which is not .*there are 2 of that name: give the path"):
        left("elsewhere/1.png")
