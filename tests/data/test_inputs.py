"""The two folders of a run: folders that overlap are refused, doubtful ones are warned of."""

import os

import pytest
from PIL import Image

from trainer.common.errors import UserError
from trainer.config.train_config import TrainConfig
from trainer.data import inputs


@pytest.fixture
def folders(tmp_path):
    found = {}
    for name, count in (("unlabeled", 2), ("sensitive", 3)):
        found[name] = tmp_path / name
        found[name].mkdir()
        for i in range(count):
            Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(found[name] / f"{i}.png")
    return found


def find(unlabeled, sensitive):
    return inputs.find(TrainConfig(unlabeled=unlabeled, sensitive=sensitive, prompt="x"))


def test_one_folder_for_both_is_refused(folders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="are the same folder"):
        find(folders["unlabeled"], folders["unlabeled"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="are the same folder"):
        find(folders["unlabeled"], folders["sensitive"] / ".." / "unlabeled")
    assert len(find(folders["unlabeled"], folders["sensitive"]).unlabeled) == 2


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_to_one_folder_are_refused(folders, tmp_path):
    (tmp_path / "link").symlink_to(folders["sensitive"])
    with pytest.raises(UserError, match="are the same folder"):
        find(tmp_path / "link", folders["sensitive"])
    (folders["unlabeled"] / "link").symlink_to(folders["sensitive"])  # what a link in a folder leads to is not in it
    assert len(find(folders["unlabeled"], folders["sensitive"]).sensitive) == 1


def test_a_folder_in_the_other_is_not_part_of_it(folders):
    Image.new("RGB", (64, 64), (0, 99, 0)).save(folders["unlabeled"] / "third.png")
    outer, inner = folders["unlabeled"], folders["sensitive"].rename(folders["unlabeled"] / "bad")
    for unlabeled, sensitive in ((outer, inner), (inner, outer)):
        found = find(unlabeled, sensitive)
        assert (len(found.unlabeled), len(found.sensitive) + len(found.held_out)) == (3, 3)
        assert any("bad" in note and "the folder of" in note for note in found.notes), found.notes


@pytest.mark.parametrize("command", [[], ["data"], ["audit"], ["prior"]], ids=["train", "data", "audit", "prior"])
def test_every_command_refuses_it(command, folders, tmp_path, trainer):
    same = folders["unlabeled"]
    words = ["--base", "builtin", "--prompt", "x", "--unlabeled", same, "--sensitive", same, "--output-dir"]
    done = trainer(*command, *words, tmp_path / "out")
    assert done.returncode == 2
    assert "are the same folder" in done.stderr
    assert not list((tmp_path / "out").rglob("*")), "nothing is made before the refusal"


def test_data_without_folders_is_a_sentence(trainer):
    done = trainer("data")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: --unlabeled and --sensitive: name the two folders of images, or --data, which holds both\n"
    )


@pytest.mark.parametrize(("count", "warns"), [(3, True), (5, True), (6, False)])
def test_few_sensitive_images_are_warned_of(count, warns, folders, trainer):
    for i in range(3, count):
        Image.new("RGB", (64, 64), (0, 40 * i, 0)).save(folders["sensitive"] / f"{i}.png")
    words = ["data", "--base", "builtin", "--prompt", "x"]
    done = trainer(*words, "--unlabeled", folders["unlabeled"], "--sensitive", folders["sensitive"])
    assert (f"only {count - 2} sensitive image" in done.stdout) == warns


def test_a_training_warns_of_them_before_it_begins(folders, tmp_path, trainer, monkeypatch):
    monkeypatch.setattr("trainer.training.command._train", lambda *_, **__: 0)
    words = ["--base", "builtin", "--prompt", "x", "--resolution", 64, "--output-dir", tmp_path / "out"]
    done = trainer(*words, "--unlabeled", folders["unlabeled"], "--sensitive", folders["sensitive"])
    assert done.returncode == 0, done.stderr
    assert "warning: only 1 sensitive image is trained on, as 2 are held out" in done.stdout
