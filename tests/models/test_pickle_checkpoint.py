"""A .ckpt: what is loaded of it, and what is refused without being run."""

import sys
from decimal import Decimal
from types import ModuleType

import numpy as np
import pytest
import torch
from random_checkpoint import SMALL, Evil, random_state, write

from trainer.common.errors import UserError
from trainer.models import base_model


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("base") / "small.safetensors", SMALL)


def test_ckpt_loads_as_the_same_weights(small, tmp_path):
    """As Lightning wrote them: a state_dict among callbacks and numpy numbers."""
    path = tmp_path / "model.ckpt"
    state = random_state(SMALL)
    torch.save({"state_dict": state, "epoch": 3, "loss": np.float64(0.5)}, path)
    unet = base_model.load_unet(base_model.Base(path), torch.float32)
    plain = base_model.load_unet(base_model.Base(small), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), plain.parameters(), strict=True))


class _Callback:
    """Pickled under the name of Lightning's callback."""


_Callback.__module__, _Callback.__qualname__ = "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"


def test_ckpt_with_lightnings_callback(tmp_path, monkeypatch):
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["pytorch_lightning.callbacks.model_checkpoint"].ModelCheckpoint = _Callback
    torch.save({"state_dict": random_state(SMALL), "callbacks": {_Callback: {"best": 1.0}}}, tmp_path / "x.ckpt")
    monkeypatch.undo()
    assert base_model.load_unet(base_model.Base(tmp_path / "x.ckpt"), torch.float32).config.cross_attention_dim == 64


def refuse(path, match):
    """Raises: AssertionError where it is taken, or refused with other words. Returns: the words."""
    path.touch()
    with pytest.raises(UserError, match=match) as refusal:
        base_model.load_unet(base_model.Base(path), torch.float32)
    return str(refusal.value)


@pytest.mark.parametrize(("value", "name"), [(Evil(), "print"), (Decimal(1), r"decimal\.Decimal")])
def test_ckpt_that_runs_code_is_refused(value, name, tmp_path, capsys):
    """In one line, without the colours that torch puts into its page of advice."""
    torch.save({"state_dict": random_state(SMALL), "x": value}, tmp_path / "x.ckpt")
    words = refuse(tmp_path / "x.ckpt", rf"is not opened: it holds more than weights \({name}\)\. Convert it once")
    assert "\x1b" not in words
    assert "\n" not in words
    assert "never run" not in capsys.readouterr().out


@pytest.mark.parametrize("said", ["", "one line\nand another", "a\tb\nWeightsUnpickler error: one line\n\nmore"])
def test_ckpt_that_cannot_be_read(said, tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise ValueError(said)

    monkeypatch.setattr(torch, "load", fail)
    reason = r"one line" if said else r"ValueError\(''\)"
    refuse(tmp_path / "x.ckpt", rf"it cannot be read \({reason}\)\. Convert it once")


def test_ckpt_needs_a_torch_that_checks_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    refuse(tmp_path / "x.ckpt", r"only opened with torch 2\.10 or newer, this is 2\.9\.1")


NO_MODEL = {"list": [1], "tensor": torch.ones(1), "numbers": {1: torch.ones(1)}, "list inside": {"state_dict": [1]}}


@pytest.mark.parametrize("kind", NO_MODEL)
def test_ckpt_of_something_else(kind, tmp_path):
    """Also where only its sizes are asked for, as a plan does."""
    torch.save(NO_MODEL[kind], tmp_path / "x.ckpt")
    refuse(tmp_path / "x.ckpt", "no Stable Diffusion checkpoint")
    with pytest.raises(UserError, match="no Stable Diffusion checkpoint"):
        base_model.part_config(base_model.Base(tmp_path / "x.ckpt"), "unet")


def test_ckpt_without_a_vae(tmp_path):
    """Serves where another VAE is used."""
    state = {name: value for name, value in random_state(SMALL).items() if not name.startswith("first_stage_model.")}
    torch.save(state, tmp_path / "x.ckpt")
    base = base_model.Base(tmp_path / "x.ckpt")
    assert base_model.part_config(base, "unet")["cross_attention_dim"] == 64
    with pytest.raises(UserError, match="lacks the vae"):
        base_model.part_config(base, "vae")
