"""The merged model does what base and LoRA do together, as a folder and as a single file."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from random_checkpoint import SMALL, write
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.common.errors import UserError
from trainer.models import base_model, lora_file, merge
from trainer.models.networks import LoraNetwork, attach_lora

RANK, ALPHA = 2, 3.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base, its U-Net with a LoRA that does something, and the LoRA's weights."""
    base = base_model.Base(write(tmp_path_factory.mktemp("base") / "x.safetensors", SMALL, torch.float32))
    unet = base_model.load_unet(base, torch.float32)
    parameters = attach_lora(unet, rank=RANK, alpha=ALPHA, seed=0).parameters
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return base, unet, LoraNetwork(unet).weights()


def predict(unet):
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, 64, generator=generator)
    with torch.no_grad():
        return unet(x, torch.tensor([400]), text).sample


def test_merged_checkpoint(trained, tmp_path):
    base, unet, weights = trained
    merge.save_checkpoint(base, tmp_path / "m.safetensors", merge.of_lora(weights, scale=ALPHA / RANK))
    loaded = base_model.load_unet(base_model.Base(tmp_path / "m.safetensors"), torch.float32)
    torch.testing.assert_close(predict(loaded), predict(unet), atol=1e-4, rtol=1e-4)
    assert (predict(loaded) - predict(base_model.load_unet(base, torch.float32))).abs().max() > 0.01
    before, after = load_file(base.path), load_file(tmp_path / "m.safetensors")
    assert before.keys() == after.keys()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert len(changed) == len(weights) // 2
    assert all(k.startswith("model.diffusion_model.") for k in changed)


def test_merged_folder(trained, tmp_path):
    base, unet, weights = trained
    merge.save_folder(base, tmp_path / "folder", merge.of_lora(weights, scale=ALPHA / RANK), dtype=torch.float32)
    found = base_model.Base(tmp_path / "folder")
    base_model.check(found)
    torch.testing.assert_close(predict(base_model.load_unet(found, torch.float32)), predict(unet), atol=1e-4, rtol=1e-4)


def save_folder(trained, folder):
    base, _, weights = trained
    merge.save_folder(base, folder, merge.of_lora(weights, scale=ALPHA / RANK), dtype=torch.float16)


def test_a_folder_is_whole_or_absent(trained, tmp_path, monkeypatch):
    """One that was killed, or failed, on its way leaves what was there before, and the next one clears up."""
    folder = tmp_path / "folder"

    def fail(self, folder, **more):
        (folder / "unet").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusionPipeline, "save_pretrained", fail)
        with pytest.raises(OSError, match="No space left"):
            save_folder(trained, folder)
    assert list(tmp_path.iterdir()) == []
    for name in ("folder", ".folder.new", ".folder.old"):  # of an earlier run, and of one that was killed
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    save_folder(trained, folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert not (folder / "x").exists()
    base_model.check(base_model.Base(folder))
    assert len({file.stat().st_mode for file in folder.rglob("*") if file.is_file()}) == 1


def test_going_on_from_a_lora(trained, tmp_path):
    """At another alpha the start is the same model; another rank, width or model is refused by name."""
    base, unet, weights = trained
    path = tmp_path / "start.safetensors"
    save_file(lora_file.to_kohya(weights, alpha=ALPHA, dtype=torch.float32), path)
    fresh = base_model.load_unet(base, torch.float32)
    attach_lora(fresh, rank=RANK, alpha=8.0, seed=5)
    modules = LoraNetwork(fresh).pairs()
    LoraNetwork(fresh).load_weights(lora_file.from_kohya(path, modules, rank=RANK, scale=8.0 / RANK))
    torch.testing.assert_close(predict(fresh), predict(unet), atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="has rank 2; give --rank 2"):
        lora_file.from_kohya(path, modules, rank=4, scale=1.0)
    wide = {
        key: torch.cat([value, value], -1) if key.endswith("attn2.to_k.down") else value
        for key, value in weights.items()
    }
    save_file(lora_file.to_kohya(wide, alpha=ALPHA, dtype=torch.float32), tmp_path / "wide.safetensors")
    name = r"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k\.lora_down\.weight"
    with pytest.raises(UserError, match=rf"{name} is \(2, 128\) there, \(2, 64\) in this model"):
        lora_file.from_kohya(tmp_path / "wide.safetensors", LoraNetwork(fresh).pairs(), rank=RANK, scale=1.0)
    with pytest.raises(UserError, match="has nothing for this model's modules"):
        lora_file.from_kohya(path, {"other.down": ()}, rank=RANK, scale=1.0)
    with pytest.raises(UserError, match="cannot be read"):
        lora_file.from_kohya(base.path.parent, modules, rank=RANK, scale=1.0)


def test_metadata_of_the_base_is_kept(trained, tmp_path):
    base, _, weights = trained
    marked = tmp_path / "marked.safetensors"
    save_file(load_file(base.path), marked, metadata={"modelspec.title": "mine"})
    merge.save_checkpoint(base_model.Base(marked), tmp_path / "m.safetensors", merge.of_lora(weights, scale=1.0))
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"modelspec.title": "mine"}
