"""Pictures where memory is short."""

import numpy as np
import torch

from trainer import model
from trainer.builtin import MODEL
from trainer.sample import pictures


def test_a_card_too_small_for_the_vae_leaves_it_to_the_cpu(monkeypatch):
    pipe = model.load_pipeline(model.Base(MODEL))
    wanted = pictures(pipe, "a photo of a digit", seeds=[1, 2], resolution=64, steps=2, guidance=1.0)
    decode, places = pipe.vae.decode, []

    def decode_on_the_second_try(latents):
        places.append(pipe.vae.device.type)
        if len(places) == 1:
            raise torch.OutOfMemoryError
        return decode(latents)

    monkeypatch.setattr(pipe.vae, "decode", decode_on_the_second_try)
    found = pictures(pipe, "a photo of a digit", seeds=[1, 2], resolution=64, steps=2, guidance=1.0)
    assert places == ["cpu", "cpu"]
    assert np.array_equal(found, wanted)
