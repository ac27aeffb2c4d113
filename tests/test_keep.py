"""--keep-prompts: what must stay, as the base model shows it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import data, keep, model
from trainer.__main__ import main
from trainer.builtin import MODEL
from trainer.config import TrainConfig
from trainer.dataset import Folders, Sample
from trainer.errors import Stopped
from trainer.sample import pictures
from trainer.switches import Switches

CONFIG = TrainConfig(base="builtin", resolution=64, sample_steps=2, keep_prompts="the digit two |the digit four|")


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "IMAGES", 2)

    def make(switches=Switches("fp32", "fp32"), check=lambda: None):  # noqa: B008
        return keep.kept_samples(CONFIG, model.Base(MODEL), tmp_path, switches, device=torch.device("cpu"), check=check)

    return make


def read(samples):
    return np.stack([np.asarray(Image.open(sample.path)) for sample in samples])


def test_they_are_the_base_models_pictures_under_their_prompts(make):
    samples = make()
    assert [s.caption for s in samples] == ["the digit two"] * 2 + ["the digit four"] * 2
    seeds, prompt = [keep.FIRST_SEED + 2, keep.FIRST_SEED + 3], "the digit four"
    wanted = pictures(
        model.load_pipeline(model.Base(MODEL)), prompt, seeds=seeds, resolution=64, steps=2, guidance=keep.GUIDANCE
    )
    assert np.abs(read(samples[2:]).astype(int) - wanted).max() <= 1


def test_memory_switches_change_rounding_only(make, tmp_path):
    plain = read(make())
    for path in tmp_path.iterdir():
        path.unlink()
    saving = read(make(Switches("fp32", "fp32", checkpointing=4, offload=2)))
    assert np.abs(saving.astype(int) - plain).max() <= 1


@pytest.mark.parametrize(
    ("changes", "captions", "own", "warns"),
    [
        ({}, ["a"], "b", True),
        ({"keep_prompts": "c"}, ["a"], "b", False),
        ({"sensitive_prompt_share": 0}, ["a"], "b", False),
        ({"objective": "unsupervised"}, ["a"], "b", False),
        ({}, ["a"], None, False),
        ({}, ["a", "c"], "b", False),
    ],
)
def test_who_is_warned_of_spilling_over(changes, captions, own, warns):
    folders = Folders([Sample(Path(c), c) for c in captions], [Sample(Path("s"), own)], [], [])
    config = TrainConfig(**{"base": "builtin", **changes})
    assert data.may_spill_over(config, folders) == warns


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep-prompts", " | "], "--keep-prompts: names no prompt"),
        (["--sensitive-prompt", "x", "--batch-sensitive", "1"], "needs 2 samples of each kind"),
    ],
)
def test_wrong_input(words, said, capsys):
    assert main(["--dry-run", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_is_there_is_not_made_again(make, monkeypatch):
    """Stopped in the middle, the next start goes on; with all of them no model is loaded."""
    calls = iter([None] * 3)  # one picture of two steps, and the first step of the next

    def check():
        if next(calls, Stopped) is Stopped:
            raise Stopped

    with pytest.raises(Stopped):
        make(check=check)
    samples = make(check=lambda: None)
    assert len({s.path for s in samples}) == 4
    monkeypatch.setattr(model, "load_unet", None)
    assert make() == samples
