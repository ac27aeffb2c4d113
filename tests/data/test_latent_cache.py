"""Phase 1: what is kept under which key, and what never is."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.builtin import MODEL
from trainer.common.errors import UserError
from trainer.data import latent_cache
from trainer.data.folders import Sample
from trainer.data.images import PLAIN, View
from trainer.models import base_model


def run(folder, path, views=(PLAIN,), **more):
    how = {"base": base_model.Base(MODEL), "resolution": 64, "bucket": True, "device": torch.device("cpu")} | more
    cache = latent_cache.LatentCache(folder=folder, **how)
    return cache.encode([Sample(path, "x")], {"x"}, views=views, progress=lambda *_: None)


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_keys_are_of_what_decides_the_latent(image, tmp_path):
    """Not of names or places: the same bytes are encoded once. Everything else that changes a latent has its own."""
    cache = tmp_path / "cache"

    def key(path, view=PLAIN, **more):
        return run(cache, path, views=[view], **more).latent_keys[path, view]

    first = key(image)
    assert key(shutil.copy(image, tmp_path / "other name.png")) == first
    other_vae = tmp_path / "model"
    shutil.copytree(MODEL, other_vae)
    weights = other_vae / "vae" / "diffusion_pytorch_model.safetensors"
    state = latent_cache.load_file(weights)
    latent_cache.save_file({name: value + 0.01 for name, value in state.items()}, weights)
    Image.open(image).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png")
    others = [
        key(tmp_path / "turned.png"),
        key(image, base=base_model.Base(other_vae)),
        key(image, resolution=72, bucket=False),
        key(image, View(flip=True)),
        key(image, View(crop=1)),
    ]
    assert len({first, *others}) == 6
    assert len(list(cache.glob("*.safetensors"))) == 6 + 1  # and one caption
    text = run(cache, image).text_keys["x"]
    assert run(cache, image, clip_skip=2).text_keys["x"] != text
    longer = run(cache, image, max_tokens=150)
    assert longer.text_keys["x"] != text
    assert (len(run(cache, image).text("x")), len(longer.text("x"))) == (77, 152)


def test_a_latent_is_made_once_and_a_damaged_one_again(image, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    found = run(cache, image)
    wanted = found.latents(image, PLAIN).clone()  # it is mapped from the file
    monkeypatch.setattr(base_model, "load_vae", None)  # would fail if it were asked for
    assert torch.equal(run(cache, image).latents(image, PLAIN), wanted)
    monkeypatch.undo()
    path = found.store.path(found.latent_keys[image, PLAIN])
    path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(run(cache, image).latents(image, PLAIN), wanted)


def test_nan_is_never_kept(image, tmp_path, monkeypatch):
    genuine = base_model.load_vae

    def damaged(base, dtype):
        vae = genuine(base, dtype)
        vae.encoder.conv_in.weight.data[0, 0, 0, 0] = float("nan")
        return vae

    monkeypatch.setattr(base_model, "load_vae", damaged)
    with pytest.raises(UserError, match=r"a\.png: the VAE makes nan of this image"):
        run(tmp_path / "cache", image)
    assert not list((tmp_path / "cache").glob("*"))
