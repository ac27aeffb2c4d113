"""--keep-prompts: what must stay, as the base model shows it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.__main__ import main
from trainer.builtin import MODEL
from trainer.common.distributed import ONE
from trainer.common.errors import Stopped
from trainer.config.train_config import TrainConfig
from trainer.data import inputs
from trainer.data.folders import Folders, Sample
from trainer.data.job import TrainingJob
from trainer.generation import preservation
from trainer.generation.generate import PictureSettings, generate_pictures
from trainer.memory.memory_plan import MemoryPlan
from trainer.models import base_model, pipeline
from trainer.reporting.run_context import RunContext
from trainer.reporting.run_dir import RunDir

CONFIG = TrainConfig(base="builtin", resolution=64, sample_steps=2, keep_prompts="the digit two |the digit four|")


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(preservation, "IMAGES", 2)

    def make(plan=MemoryPlan("fp32", "fp32"), check=lambda: None):  # noqa: B008
        job = TrainingJob(CONFIG, base_model.Base(MODEL), Folders([], [], [], []))
        context = RunContext(torch.device("cpu"), ONE, RunDir(tmp_path, "run"), emit=None, check=check)
        return preservation.preservation_samples(job, plan, context)

    return make


def read(samples):
    return np.stack([np.asarray(Image.open(sample.path)) for sample in samples])


def test_they_are_the_base_models_pictures_under_their_prompts(make):
    samples = make()
    assert [s.caption for s in samples] == ["the digit two"] * 2 + ["the digit four"] * 2
    seeds, prompt = [preservation.FIRST_SEED + 2, preservation.FIRST_SEED + 3], "the digit four"
    settings = PictureSettings(64, steps=2, guidance=preservation.GUIDANCE)
    wanted = generate_pictures(pipeline.load_pipeline(base_model.Base(MODEL)), prompt, seeds, settings)
    assert np.abs(read(samples[2:]).astype(int) - wanted).max() <= 1


def test_memory_switches_change_rounding_only(make, tmp_path):
    plain = read(make())
    for path in (tmp_path / "run" / "keep").iterdir():
        path.unlink()
    saving = read(make(MemoryPlan("fp32", "fp32", checkpointing=4, offload=2)))
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
    assert inputs.may_spill_over(config, folders) == warns


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
    monkeypatch.setattr(base_model, "load_unet", None)
    assert make() == samples
