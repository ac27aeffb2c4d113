"""Predictions that are kept: the same as made anew, and made anew whenever anything differs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.builtin import MODEL
from trainer.memory import estimator, prediction_cache
from trainer.memory.estimator import Estimate, Shape
from trainer.memory.memory_plan import MemoryPlan

SHAPE = Shape(json.loads((MODEL / "unet" / "config.json").read_text()), 4, "adamw", 64, 64)
PLAN = MemoryPlan("fp16", "fp16")


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The predictions that were made, not read."""
    found = []

    def predict(shape, plan):
        found.append((shape, plan))
        return Estimate(1.5, 2.5, 0.1 + len(found))

    monkeypatch.setattr(estimator, "predict", predict)
    monkeypatch.setenv(prediction_cache.FOLDER, str(tmp_path / "cache"))
    return found


def test_what_was_predicted_once_is_read(made):
    first = prediction_cache.predict(SHAPE, PLAN)
    assert prediction_cache.predict(SHAPE, PLAN) == first
    assert len(made) == 1


def test_a_real_prediction_comes_back_as_it_was(monkeypatch, tmp_path):
    monkeypatch.setenv(prediction_cache.FOLDER, str(tmp_path))
    first = prediction_cache.predict(SHAPE, PLAN)
    monkeypatch.setattr(estimator, "predict", None)
    assert prediction_cache.predict(SHAPE, PLAN) == first


@pytest.mark.parametrize(
    ("shape", "plan"),
    [
        (replace(SHAPE, rank=8), PLAN),
        (replace(SHAPE, height_px=128), PLAN),
        (replace(SHAPE, unet={**SHAPE.unet, "sample_size": 9}), PLAN),
        (SHAPE, replace(PLAN, checkpointing=1)),
        (SHAPE, replace(PLAN, weights="fp8")),
    ],
)
def test_anything_else_is_predicted_anew(made, shape, plan):
    prediction_cache.predict(SHAPE, PLAN)
    prediction_cache.predict(shape, plan)
    assert made == [(SHAPE, PLAN), (shape, plan)]


def test_other_code_predicts_anew(made, monkeypatch):
    prediction_cache.predict(SHAPE, PLAN)
    monkeypatch.setattr(prediction_cache, "_code", lambda: ["another torch"])
    prediction_cache.predict(SHAPE, PLAN)
    assert len(made) == 2


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"weights": 1}', '{"weights": 1, "other": 2}', "\0"])
def test_a_damaged_file_is_written_anew(made, tmp_path, text):
    file = tmp_path / "cache" / "predictions" / f"{prediction_cache._key(SHAPE, PLAN)}.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert prediction_cache.predict(SHAPE, PLAN) == prediction_cache.predict(SHAPE, PLAN)
    assert len(made) == 1


def test_a_folder_that_cannot_be_written_costs_only_the_time(made, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(prediction_cache.FOLDER, str(tmp_path / "file" / "below"))
    assert prediction_cache.predict(SHAPE, PLAN).weights == 1.5


def test_the_key_holds_all_code_of_ours_that_a_prediction_runs():
    source = Path(estimator.__file__).read_text()
    assert set(re.findall(r"^from \.\.models\.(\w+) import", source, re.MULTILINE)) == set(prediction_cache.MODELS)


def test_the_systems_folder_is_taken(monkeypatch, tmp_path):
    monkeypatch.delenv(prediction_cache.FOLDER)
    monkeypatch.setattr(prediction_cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prediction_cache.folder() == tmp_path / "pu-unlearn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # which Windows reads
    assert prediction_cache.folder() == tmp_path / ".cache" / "pu-unlearn"
    monkeypatch.setattr(prediction_cache.sys, "platform", "darwin")
    assert prediction_cache.folder() == tmp_path / "Library" / "Caches" / "pu-unlearn"
    monkeypatch.setattr(prediction_cache.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert prediction_cache.folder() == tmp_path / "Local" / "pu-unlearn"
