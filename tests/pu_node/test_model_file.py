"""PU Checkpoint from Model: what is saved and refused, with stand-ins for ComfyUI's models."""

import sys
import types
from pathlib import Path

import pytest
from comfy_stub import comfy

__all__ = ["comfy"]


class ModelSamplingDiscrete:
    zsnr = False


class EPS:
    pass


class V_PREDICTION(EPS):  # ComfyUI's name
    pass


class X0(EPS):
    pass


class SD15:
    def __init__(self, **unet):
        self.unet_config = unet


class SDXL(SD15):
    pass


@pytest.fixture
def saved(comfy, monkeypatch):
    """What ComfyUI was asked to save: the declared keys of each checkpoint."""
    asked = []

    def save(path, model, clip, vae, metadata, extra_keys):
        assert not list(metadata)  # a prompt in it would make another file of the same model
        asked.append(sorted(extra_keys))
        Path(path).write_text(f"{model.weights} {clip} {vae} {sorted(extra_keys)}")

    modules = {
        "sd": {"save_checkpoint": save},
        "model_sampling": {c.__name__: c for c in (ModelSamplingDiscrete, EPS, V_PREDICTION, X0)},
        "supported_models": {"SD15": SD15},
    }
    for name, content in modules.items():
        module = types.ModuleType(f"comfy.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, f"comfy.{name}", module)
        monkeypatch.setattr(sys.modules["comfy"], name, module, raising=False)
    return asked


def model(kind=EPS, *, zsnr=False, config=None, made_for="EPS", weights="w"):
    sampling = type("ModelSampling", (ModelSamplingDiscrete, kind), {"zsnr": zsnr})()
    inner = types.SimpleNamespace(
        model_config=config or SD15(in_channels=4), model_type=types.SimpleNamespace(name=made_for)
    )
    return types.SimpleNamespace(model=inner, weights=weights, get_model_object=lambda name: sampling)


def checkpoint(comfy, given):
    return comfy.run("PUCheckpointFromModel", model=given, clip="clip", vae="vae").args[0]


@pytest.mark.parametrize(
    ("kind", "zsnr", "declared"),
    [
        (EPS, False, []),
        (EPS, True, ["ztsnr"]),
        (V_PREDICTION, False, ["v_pred"]),
        (V_PREDICTION, True, ["v_pred", "ztsnr"]),
    ],
)
def test_the_file_tells_how_the_model_samples(comfy, saved, kind, zsnr, declared):
    checkpoint(comfy, model(kind, zsnr=zsnr))
    assert saved == [declared]


def test_the_same_model_is_the_same_file(comfy, saved):
    first = Path(checkpoint(comfy, model()))
    time = first.stat().st_mtime_ns
    assert checkpoint(comfy, model()) == str(first)
    assert first.stat().st_mtime_ns == time
    assert checkpoint(comfy, model(weights="merged")) != str(first)
    assert len(list(first.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (model(config=SDXL()), "model: this is SDXL; PU Unlearn trains on Stable Diffusion 1.x"),
        (model(config=SD15(in_channels=9)), "model: this is an inpainting model; PU Unlearn trains"),
        (model(X0), "model: its sampling was changed to X0, which is not trained"),
        (model(EPS, made_for="V_PREDICTION"), "model: its sampling was changed to EPS, which is not trained"),
    ],
)
def test_other_models_are_refused_in_a_sentence(comfy, saved, given, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        checkpoint(comfy, given)
    assert saved == []


def test_every_node_takes_the_file_and_none_other(comfy, saved):
    comfy.folder("unlabeled")
    comfy.folder("sensitive")
    made = checkpoint(comfy, model())
    images = comfy.run("PUDataset", unlabeled="unlabeled", sensitive="sensitive").args[0]
    widget = {"checkpoint": "[built-in digits demo]"}
    done = comfy.run("PUUnlearn", **widget, checkpoint_link=made, dataset=images, steps=2, name="merged")
    assert comfy.calls()[-1][1]["base"] == made
    assert Path(done.args[1]).parent == comfy.root / "output" / "loras"
    comfy.run("PUPlan", **widget, checkpoint_link=made, dataset=images)
    assert comfy.calls()[-1][1]["base"] == made
    other = comfy.root / "temp" / "pu_unlearn" / "other.safetensors"
    other.write_text("x")
    for wrong in (str(other), f"{made}/../../other.safetensors", "/etc/passwd"):
        with pytest.raises(ValueError, match=r"^checkpoint: .* is not in the list"):
            comfy.run("PUPlan", **widget, checkpoint_link=wrong, dataset=images)
