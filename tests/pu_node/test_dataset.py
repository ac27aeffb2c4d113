"""PU Dataset: images of the graph, several folders, and what is made of them for the trainer."""

import sys
from pathlib import Path

import pytest
import torch
from comfy_stub import comfy
from PIL import Image

from pu_node import dataset_folders

__all__ = ["comfy"]


def batch(*values, size=8):
    """An IMAGE: a picture of one grey each."""
    return torch.stack([torch.full((size, size, 3), value / 255) for value in values])


def made(comfy, **values):
    """PU Dataset's output. The folder of sensitive images is `sensitive`."""
    comfy.folder("sensitive")
    return comfy.run("PUDataset", **{"unlabeled": "[none]", "sensitive": "sensitive", **values}).args[0]


def greys(folder):
    return sorted(Image.open(path).getpixel((0, 0))[0] for path in Path(folder).rglob("*.png"))


def test_images_of_the_graph_replace_the_folder(comfy):
    found = made(comfy, unlabeled_images=[batch(10, 20), batch(30, size=16)])
    folder = Path(found["unlabeled"])
    assert greys(folder) == [10, 20, 30]
    assert folder.parent == (comfy.root / "temp" / "pu_unlearn").resolve()
    assert found["sensitive"] == str(comfy.root / "input" / "sensitive")
    assert not list(folder.glob("*.txt"))
    assert [path for path in folder.parent.iterdir() if path != folder] == []


def test_an_unchanged_batch_is_the_same_folder_and_is_trained_once(comfy):
    comfy.checkpoint()

    def train(*values):
        images = made(comfy, unlabeled_images=[batch(*values)])
        return comfy.run("PUUnlearn", checkpoint="sd.safetensors", dataset=images, steps=2, name="x").args[4]

    train(10, 20)
    assert "Nothing has changed since this was trained" in train(20, 10)
    for path in (comfy.root / "temp").rglob("*.png"):
        path.unlink()
    (comfy.root / "temp").rename(comfy.root / "gone")  # ComfyUI empties it when it starts
    assert "Nothing has changed since this was trained" in train(10, 20)
    assert "Nothing has changed" not in train(10, 21)


def test_every_copy_of_an_image_counts(comfy):
    assert greys(made(comfy, unlabeled_images=[batch(10, 10, 20)])["unlabeled"]) == [10, 10, 20]


def captions(folder):
    """Caption by the image's grey."""
    texts = {path.stem: path.read_text() for path in Path(folder).glob("*.txt")}
    return {Image.open(p).getpixel((0, 0))[0]: texts.get(p.stem) for p in Path(folder).glob("*.png")}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["a", "b"], {10: "a", 20: "b"}),
        (["a\nb"], {10: "a", 20: "b"}),
        (["both"], {10: "both", 20: "both"}),
        (["a", ""], {10: "a", 20: None}),
    ],
)
def test_captions_lie_beside_the_images(comfy, given, wanted):
    found = made(comfy, unlabeled_images=[batch(10, 20)], unlabeled_captions=given)
    assert captions(found["unlabeled"]) == wanted


def test_other_captions_are_another_folder_and_a_wrong_number_is_refused(comfy):
    first = made(comfy, unlabeled_images=[batch(10, 20)], unlabeled_captions=["a"])["unlabeled"]
    assert made(comfy, unlabeled_images=[batch(10, 20)], unlabeled_captions=["b"])["unlabeled"] != first
    with pytest.raises(ValueError, match=r"^unlabeled images: 3 captions for 2 images: give one for each"):
        made(comfy, unlabeled_images=[batch(10, 20)], unlabeled_captions=["a", "b", "c"])


def test_several_folders_are_one_to_the_trainer(comfy):
    comfy.folder("one", "a", "b")
    comfy.folder("two/sub", "c")
    (comfy.root / "input" / "one" / "0.txt").write_text("caption")
    values = {"unlabeled": ["one"], "more_unlabeled": ["two"]}  # as ComfyUI gives them to a node that takes lists
    folder = Path(made(comfy, **values)["unlabeled"])
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.*")}
    assert found == {"0/0.png": "a", "0/0.txt": "caption", "0/1.png": "b", "1/sub/0.png": "c"}
    assert made(comfy, **values)["unlabeled"] == str(folder)
    node = comfy.node("PUDataset")
    before = node.fingerprint_inputs(**values, sensitive=["sensitive"])
    comfy.folder("two/sub", "changed")
    assert node.fingerprint_inputs(**values, sensitive=["sensitive"]) != before
    assert made(comfy, **values)["unlabeled"] != str(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_linked_images_and_folders_are_taken_along(comfy):
    """As the trainer reads them; and a copy stays what it was when the file behind it changes."""
    comfy.folder("one", "a")
    comfy.folder("two", "b")
    comfy.folder("store", "c")
    one, store = comfy.root / "input" / "one", comfy.root / "input" / "store"
    (one / "linked.png").symlink_to(Path("..") / "store" / "0.png")
    (one / "below").symlink_to(store, target_is_directory=True)
    (one / "back").symlink_to(one, target_is_directory=True)
    folder = Path(made(comfy, unlabeled="one", more_unlabeled="two")["unlabeled"])
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.png")}
    assert found == {"0/0.png": "a", "0/linked.png": "c", "0/below/0.png": "c", "1/0.png": "b"}
    (store / "0.png").write_text("changed in place")
    assert (folder / "0" / "linked.png").read_text() == "c"
    assert made(comfy, unlabeled="one", more_unlabeled="two")["unlabeled"] != str(folder)


def test_captions_without_images_and_links_that_deliver_nothing(comfy):
    comfy.folder("one")
    with pytest.raises(ValueError, match="unlabeled captions: they belong to unlabeled images"):
        made(comfy, unlabeled=["one"], unlabeled_captions=["a"])
    assert made(comfy, unlabeled=["one"], unlabeled_images=[None])["unlabeled"] == str(comfy.root / "input" / "one")
    with pytest.raises(ValueError, match="unlabeled: choose a folder, or connect images"):
        made(comfy, unlabeled=[None])


def test_a_sensitive_folder_inside_the_unlabeled_one_stays_apart(comfy):
    """The trainer does that for two plain folders; here it reads others, made of them."""
    comfy.folder("all", "a")
    comfy.folder("all/bad", "b")
    comfy.folder("more", "c")
    plain = {"unlabeled": "all", "sensitive": "all/bad"}
    assert made(comfy, **plain)["unlabeled"] == str(comfy.root / "input" / "all")

    def texts(folder):
        return sorted(path.read_text() for path in Path(folder).rglob("*.png"))

    found = made(comfy, **plain, more_unlabeled="more")
    assert (texts(found["unlabeled"]), texts(found["sensitive"])) == (["a", "c"], ["b"])
    found = made(comfy, **plain, more_sensitive="more")
    assert (texts(found["unlabeled"]), texts(found["sensitive"])) == (["a"], ["b", "c"])


def test_images_and_further_folders_go_together(comfy):
    comfy.folder("two", "c")
    folder = Path(made(comfy, unlabeled_images=[batch(10)], more_unlabeled="two")["unlabeled"])
    assert sorted(path.relative_to(folder).parts[0] for path in folder.rglob("*.png")) == ["0", "1"]


def test_a_linked_image_needs_no_folder_and_further_ones_are_checked(comfy):
    """ComfyUI gives (None,) for the value of a link."""
    node, links = comfy.node("PUDataset"), {"unlabeled_images": (None,), "sensitive_images": (None,)}
    nothing = {"unlabeled": ["[no subfolder in ComfyUI/input]"], "sensitive": ["[no subfolder in ComfyUI/input]"]}
    assert node.validate_inputs(**nothing, **links) is True
    assert node.fingerprint_inputs(**nothing, **links) == node.fingerprint_inputs(**nothing, **links)
    assert "is no subfolder" in node.validate_inputs(**nothing)
    comfy.folder("one")
    comfy.folder("two")
    both = {"unlabeled": ["one"], "sensitive": ["two"]}
    said = node.validate_inputs(**both, more_sensitive=["../etc"])
    assert said.startswith("more_sensitive: '../etc' is no subfolder")
    assert "both are 'one'" in node.validate_inputs(**both, more_sensitive=["one"])
    assert node.validate_inputs(**both, more_sensitive=(None,)) is True
    assert node.fingerprint_inputs(**both, more_sensitive=(None,)) > 0


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataset_folders.of_images([Image.new("RGB", (8, 8))], [], tmp_path / "made")
    assert list((tmp_path / "made").iterdir()) == []
