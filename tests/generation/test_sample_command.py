"""Pictures where memory is short, and what `sample` looks at before it makes any."""

import numpy as np
import pytest
import torch

from trainer.builtin import MODEL
from trainer.common.errors import UserError
from trainer.generation import sample_command
from trainer.generation.generate import PictureSettings, generate_pictures
from trainer.generation.sample_command import main
from trainer.memory import devices
from trainer.models import base_model, pipeline


def test_a_card_too_small_for_the_vae_leaves_it_to_the_cpu(monkeypatch):
    pipe = pipeline.load_pipeline(base_model.Base(MODEL))
    wanted = generate_pictures(pipe, "a photo of a digit", [1, 2], PictureSettings(64, steps=2, guidance=1.0))
    decode, places = pipe.vae.decode, []

    def decode_on_the_second_try(latents):
        places.append(pipe.vae.device.type)
        if len(places) == 1:
            raise torch.OutOfMemoryError
        return decode(latents)

    monkeypatch.setattr(pipe.vae, "decode", decode_on_the_second_try)
    found = generate_pictures(pipe, "a photo of a digit", [1, 2], PictureSettings(64, steps=2, guidance=1.0))
    assert places == ["cpu", "cpu"]
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_the_unet_is_as_small_as_the_device_likes_it(precision, tmp_path, monkeypatch):
    """fp32 on the CPU; a card that computes in half precision holds no more than that."""
    found = []

    def note(pipe, prompt, seeds, settings):
        found.append(pipe.unet.dtype)
        return np.zeros((len(seeds), 64, 64, 3), dtype=np.uint8)

    choose = devices.choose_precision
    monkeypatch.setattr(devices, "choose_precision", lambda wanted, device: choose(precision, device))
    monkeypatch.setattr(sample_command, "generate_pictures", note)
    assert main(["--prompt", "x", "--device", "cpu", "--out", str(tmp_path / "new" / "x.png")]) == 0
    assert found == [{"auto": torch.float32, "bf16": torch.bfloat16}[precision]]


def test_a_place_that_cannot_be_written_is_told_before_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(base_model, "load_unet", None)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out: .*x\.png cannot be written"):
        main(["--prompt", "x", "--out", str(tmp_path / "file" / "x.png")])
    (tmp_path / "x.png").mkdir()
    with pytest.raises(UserError, match=r"must not be a folder"):
        main(["--prompt", "x", "--out", str(tmp_path / "x.png")])


def test_no_guidance_is_not_the_default(tmp_path, monkeypatch):
    found = []

    def note(pipe, prompt, seeds, settings):
        found.append(settings.guidance)
        return np.zeros((1, 64, 64, 3), dtype=np.uint8)

    monkeypatch.setattr(sample_command, "generate_pictures", note)
    for more in ([], ["--guidance", "0"]):
        main(["--prompt", "x", "--out", str(tmp_path / "x.png"), *more])
    assert found == [1.0, 0.0]
