"""Predictions that are kept: the same as made anew, and made anew whenever anything differs."""

import json
from dataclasses import replace

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


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"KEY": 3}', '{"KEY": {"weights": 1}}', "\0"])
def test_a_damaged_file_is_written_anew(made, tmp_path, text):
    file = tmp_path / "cache" / "predictions.json"
    file.parent.mkdir()
    file.write_text(text.replace("KEY", prediction_cache._key(SHAPE, PLAN)))
    assert prediction_cache.predict(SHAPE, PLAN) == prediction_cache.predict(SHAPE, PLAN)
    assert len(made) == 1


def test_a_folder_that_cannot_be_written_costs_only_the_time(made, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(prediction_cache.FOLDER, str(tmp_path / "file" / "below"))
    assert prediction_cache.predict(SHAPE, PLAN).weights == 1.5


def test_the_oldest_go_first(made, monkeypatch):
    monkeypatch.setattr(prediction_cache, "MOST", 3)
    plans = [replace(PLAN, micro_batch=n) for n in range(1, 6)]
    for plan in plans:
        prediction_cache.predict(SHAPE, plan)
    for plan in plans[2:]:
        prediction_cache.predict(SHAPE, plan)
    assert len(made) == 5
    prediction_cache.predict(SHAPE, plans[0])
    assert len(made) == 6


def test_the_systems_folder_is_taken(monkeypatch, tmp_path):
    monkeypatch.delenv(prediction_cache.FOLDER)
    monkeypatch.setattr(prediction_cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prediction_cache.folder() == tmp_path / "pu-unlearn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prediction_cache.folder() == tmp_path / ".cache" / "pu-unlearn"
