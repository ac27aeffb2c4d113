"""LoRA layers and the file: names on the real SD 1.5 shape, and the same picture in diffusers."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from trainer.builtin import MODEL
from trainer.models import base_model, lora_file, pipeline
from trainer.models.networks import LoraNetwork, attach_lora, lora_target_names

RANK, ALPHA = 4, 6.0


@pytest.fixture
def unet():
    found = base_model.load_unet(base_model.Base(MODEL), torch.float32)
    attach_lora(found, rank=RANK, alpha=ALPHA, seed=0)
    return found


def stir(unet, scale=0.05):
    """Make the LoRA do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for pair in LoraNetwork(unet).pairs().values():
            for layer in pair:
                layer.weight.add_(torch.randn(layer.weight.shape, generator=generator) * scale)


def call(unet):
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 32, generator=generator)
    with torch.no_grad():
        return unet(x, torch.tensor([10, 900]), text).sample


def sd15_names():
    """kohya's 192 U-Net names, written out from the architecture: 16 transformer blocks of 12 layers."""
    places = [f"down_blocks_{i}_attentions_{j}" for i in range(3) for j in range(2)] + ["mid_block_attentions_0"]
    places += [f"up_blocks_{i}_attentions_{j}" for i in (1, 2, 3) for j in range(3)]
    block = "transformer_blocks_0"
    layers = ["proj_in", "proj_out", f"{block}_ff_net_0_proj", f"{block}_ff_net_2"]
    layers += [f"{block}_{a}_{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out_0")]
    return {f"lora_unet_{place}_{layer}" for place in places for layer in layers}


def test_names_and_shapes_on_the_real_sd15():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)  # diffusers' defaults are SD 1.5
    names = {lora_file.kohya_name(path) for path in lora_target_names(unet)}
    assert names == sd15_names()
    assert len(names) == 192
    layers = dict(unet.named_modules())
    assert isinstance(layers["mid_block.attentions.0.proj_in"], torch.nn.Conv2d)


def test_starts_as_identity_and_is_the_same_for_the_same_seed(unet):
    torch.testing.assert_close(call(unet), call(base_model.load_unet(base_model.Base(MODEL), torch.float32)))
    again, other = (base_model.load_unet(base_model.Base(MODEL), torch.float32) for _ in range(2))
    attach_lora(again, rank=RANK, alpha=ALPHA, seed=0)
    attach_lora(other, rank=RANK, alpha=ALPHA, seed=1)
    first = LoraNetwork(unet).weights()
    assert all(torch.equal(v, first[k]) for k, v in LoraNetwork(again).weights().items())
    assert any(not torch.equal(v, first[k]) for k, v in LoraNetwork(other).weights().items())


def test_only_the_lora_is_trainable(unet):
    trainable = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)


def test_disabled_is_the_base_model_and_is_given_back(unet):
    base, before = call(base_model.load_unet(base_model.Base(MODEL), torch.float32)), None
    stir(unet)
    before = call(unet)
    with pytest.raises(RuntimeError, match="inside"), LoraNetwork(unet).disabled():
        torch.testing.assert_close(call(unet), base)
        raise RuntimeError("inside")
    torch.testing.assert_close(call(unet), before)
    assert (before - base).abs().max() > 1e-3


def test_weights_round_trip(unet):
    stir(unet)
    saved, wanted = LoraNetwork(unet).weights(), call(unet)
    fresh = base_model.load_unet(base_model.Base(MODEL), torch.float32)
    attach_lora(fresh, rank=RANK, alpha=ALPHA, seed=9)
    LoraNetwork(fresh).load_weights(saved)
    assert torch.equal(call(fresh), wanted)


def save(unet, path, dtype=torch.float32, prediction_type="epsilon"):
    standard = lora_file.standard_metadata(
        name="x",
        rank=RANK,
        alpha=ALPHA,
        resolution=64,
        base_name="m",
        base_hash="ab",
        finished="2026-01-01T00:00:00Z",
        prediction_type=prediction_type,
        clip_skip=1,
    )
    lora_file.save(path, lora_file.to_kohya(LoraNetwork(unet).weights(), alpha=ALPHA, dtype=dtype), standard)
    return path


def test_file_holds_three_tensors_for_each_module_and_nothing_else(unet, tmp_path):
    tensors = safetensors.torch.load_file(save(unet, tmp_path / "x.safetensors", torch.float16))
    names = {lora_file.kohya_name(path) for path in LoraNetwork(unet).pairs()}
    suffixes = ("lora_down.weight", "lora_up.weight", "alpha")
    assert tensors.keys() == {f"{name}.{suffix}" for name in names for suffix in suffixes}
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert {t.item() for k, t in tensors.items() if k.endswith("alpha")} == {ALPHA}
    proj = "lora_unet_mid_block_attentions_0_proj_in"
    assert tensors[f"{proj}.lora_down.weight"].shape == (RANK, 96, 1, 1)
    assert tensors[f"{proj}.lora_up.weight"].shape == (96, RANK, 1, 1)


def test_metadata_and_hashes(unet, tmp_path):
    path = save(unet, tmp_path / "x.safetensors")
    metadata = lora_file.read_metadata(path)
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["ss_base_model_version"] == "sd_1.5"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "6.0")
    # sshs_model_hash is of the tensor bytes alone: anyone can compute it from the file
    import hashlib

    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert metadata["sshs_model_hash"] == hashlib.sha256(data[8 + header :]).hexdigest()
    assert json.loads(data[8 : 8 + header])["__metadata__"] == metadata


@pytest.mark.parametrize(("ours", "said"), [("epsilon", "epsilon"), ("v_prediction", "v")])
def test_metadata_tells_what_the_model_predicts(unet, ours, said, tmp_path):
    """In the words of the modelspec standard, which are not diffusers'."""
    path = save(unet, tmp_path / "x.safetensors", prediction_type=ours)
    assert lora_file.read_metadata(path)["modelspec.prediction_type"] == said


def test_diffusers_makes_the_same_picture(unet, tmp_path):
    stir(unet, 0.1)
    path = save(unet, tmp_path / "x.safetensors")

    def make(pipe):
        generator = torch.Generator().manual_seed(0)
        return pipe(
            "a photo of a digit", num_inference_steps=5, guidance_scale=3.0, generator=generator, output_type="np"
        ).images

    pipe = pipeline.load_pipeline(base_model.Base(MODEL))
    base = make(pipe)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    loaded, trained = make(pipe), make(pipeline.load_pipeline(base_model.Base(MODEL), unet))
    assert np.abs(loaded - trained).max() <= 1e-3
    assert np.abs(loaded - base).max() > 0.05  # the LoRA does something at all
    with safe_open(path, "pt") as file:
        assert len(list(file.keys())) == 3 * len(LoraNetwork(unet).pairs())
