"""What makes two trainings the same: settings, contents and the hand-raised recipe; not places, times or sources."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pu_node import result_cache

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A copy of what the key reads of the trainer, to change."""
    folder = tmp_path / "trainer"
    (folder / "builtin").mkdir(parents=True)
    for name in ("__init__.py", "schema.json", "builtin/config.toml", "builtin/digits.py"):
        shutil.copy(ROOT / "trainer" / name, folder / name)
    for name in ("digits.npz", "classifier.safetensors"):
        (folder / "builtin" / name).write_text(name)
    monkeypatch.setattr(result_cache, "TRAINER", folder)
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_text("a")
    return folder


def key(tmp_path, images=None, **settings):
    inputs = {"base": tmp_path / "model", "unlabeled": images} if images else {}
    if images:
        inputs["base"].write_text("weights")
    store = tmp_path / "digests.json"
    return result_cache.key_of({"steps": 3, **settings}, inputs, result_cache.Digests(store))


def test_the_key_depends_on_the_recipe_and_not_on_sources(trainer, tmp_path, images):
    before, demo = key(tmp_path, images), key(tmp_path)
    for name in ("builtin/digits.py", "__init__.py"):
        with (trainer / name).open("a") as file:
            file.write("\n# an update of the pack\n")
    (trainer / "loss.py").write_text("new = True")
    schema = json.loads((trainer / "schema.json").read_text())
    schema["fields"]["steps"]["description"] = "other words"
    (trainer / "schema.json").write_text(json.dumps(schema))
    assert (key(tmp_path, images), key(tmp_path)) == (before, demo)
    text = (trainer / "__init__.py").read_text()
    (trainer / "__init__.py").write_text(text.replace("RECIPE = ", "RECIPE = 9"))
    assert key(tmp_path, images) != before
    assert key(tmp_path) != demo


def test_the_key_depends_on_defaults(trainer, tmp_path, images):
    before = key(tmp_path, images)
    schema = json.loads((trainer / "schema.json").read_text())
    schema["fields"]["clip_skip"]["default"] = 2
    (trainer / "schema.json").write_text(json.dumps(schema))
    assert key(tmp_path, images) != before


@pytest.mark.parametrize("name", ["digits.npz", "classifier.safetensors", "config.toml"])
def test_the_demos_key_depends_on_its_data(trainer, tmp_path, images, name):
    before, demo = key(tmp_path, images), key(tmp_path)
    (trainer / "builtin" / name).write_text("other")
    assert key(tmp_path) != demo
    assert key(tmp_path, images) == before


def test_the_key_depends_on_contents_and_not_on_places(trainer, tmp_path, images):
    before = key(tmp_path, images, unlabeled=str(images), output_dir="here")
    os.utime(images / "a.png", (1, 1))
    (images / ".DS_Store").write_text("of a system")
    moved = images.rename(tmp_path / "moved")
    assert key(tmp_path, moved, unlabeled=str(moved), output_dir="there") == before
    assert key(tmp_path, moved, steps=4) != before
    (moved / "a.txt").write_text("a caption")
    assert key(tmp_path, moved) != before


def test_a_file_is_read_once(tmp_path, images, monkeypatch):
    read = []
    genuine = result_cache.sha256
    monkeypatch.setattr(result_cache, "sha256", lambda path: read.append(path.name) or genuine(path))
    for _ in range(2):  # two starts of ComfyUI
        digests = result_cache.Digests(tmp_path / "digests.json")
        digests.of(images)
        digests.save()
    assert read == ["a.png"]
    (images / "a.png").write_text("b")
    os.utime(images / "a.png", (1, 1))
    assert digests.of(images) != result_cache.Digests(tmp_path / "none.json").of(tmp_path)
    assert read[:2] == ["a.png", "a.png"]


def test_recipe_is_a_line_of_the_trainer():
    import trainer

    assert result_cache.recipe() == trainer.RECIPE


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_is_moved_beside_what_is_there(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    (tmp_path / "there.txt").write_text("the user's")
    (tmp_path / "new.txt").write_text("new")
    place = result_cache.move_new(tmp_path / "new.txt", tmp_path / "there.txt")
    assert (place.name, place.read_text()) == ("there-2.txt", "new")
    assert (tmp_path / "there.txt").read_text() == "the user's"
    assert not (tmp_path / "new.txt").exists()
