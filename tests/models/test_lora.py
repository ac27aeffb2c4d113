"""LoRA layers and the file: names on the real SD 1.5 shape, and the same picture in diffusers."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open

from trainer.builtin import MODEL
from trainer.common.errors import UserError
from trainer.evaluation import relearning
from trainer.models import base_model, lora_file, pipeline
from trainer.models.networks import LoraNetwork, attach_lora, lora_target_names
from trainer.models.text_states import text_states

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


WRITERS = ("kohya", "dotted", "diffusers", "diffusers old", "peft")


def rewritten(path, writer, names, keep=lambda name: True):
    """Rewrite a kohya file as others write it (with alpha = rank, for those that have none)."""
    tensors = {k: v for k, v in safetensors.torch.load_file(path).items() if keep(k)}
    found = {}
    for key, value in tensors.items():
        name, _, side = key.partition(".")
        dotted, end = names[name], {"lora_down.weight": "A", "lora_up.weight": "B"}.get(side)
        if writer == "kohya":
            found[key] = value
        elif writer == "dotted":
            found[f"lora_unet.{dotted}.{side}"] = value
        elif end:
            scaled = value * (ALPHA / RANK) if end == "B" else value
            old = {"A": "down", "B": "up"}[end]
            found[
                {
                    "diffusers": f"unet.{dotted}.lora_{end}.weight",
                    "diffusers old": f"unet.{dotted}.lora.{old}.weight",
                    "peft": f"base_model.model.{dotted}.lora_{end}.weight",
                }[writer]
            ] = scaled
    safetensors.torch.save_file(found, path)
    return path


def added(path):
    pipe = pipeline.load_pipeline(base_model.Base(MODEL))
    pipeline.add_lora(pipe, path, 1.0)
    return pipe


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("half", [False, True], ids=["all", "half"])
def test_loras_of_other_trainers_give_the_same_prediction(unet, writer, half, tmp_path):
    """Against the sum W + alpha / rank * up @ down made by hand; half: every second module."""
    stir(unet, 0.1)
    weights, names = LoraNetwork(unet).weights(), {lora_file.kohya_name(p): p for p in LoraNetwork(unet).pairs()}
    chosen = list(names)[:: 2 if half else 1]
    path = rewritten(save(unet, tmp_path / "x.safetensors"), writer, names, lambda k: k.partition(".")[0] in chosen)
    wanted = base_model.load_unet(base_model.Base(MODEL), torch.float32)
    layers = dict(wanted.named_modules())
    with torch.no_grad():
        for name in chosen:
            down, up = (weights[f"{names[name]}.{side}"].flatten(1) for side in ("down", "up"))
            layer = layers[names[name]].weight
            layer.add_(((up @ down) * (ALPHA / RANK)).view(layer.shape))
    torch.testing.assert_close(call(added(path).unet), call(wanted), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("writer", WRITERS)
def test_training_continues_from_loras_of_other_trainers(unet, writer, tmp_path):
    stir(unet, 0.1)
    names = {lora_file.kohya_name(p): p for p in LoraNetwork(unet).pairs()}
    wanted = call(unet)
    path = rewritten(save(unet, tmp_path / "x.safetensors"), writer, names)
    fresh = base_model.load_unet(base_model.Base(MODEL), torch.float32)
    attach_lora(fresh, rank=RANK, alpha=RANK, seed=3)
    network = LoraNetwork(fresh)
    network.load_weights(lora_file.from_kohya(path, network.pairs(), rank=RANK, scale=1.0))
    torch.testing.assert_close(call(fresh), wanted, atol=2e-5, rtol=1e-4)
    assert relearning.lora_rank(path) == RANK


def test_what_a_lora_has_beyond_is_refused_by_name(unet, tmp_path):
    path, pairs = save(unet, tmp_path / "x.safetensors"), LoraNetwork(unet).pairs()
    tensors = safetensors.torch.load_file(path)
    cases = {
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": "3x3",
        next(iter(tensors)).partition(".")[0] + ".dora_scale": "DoRA",
    }
    for key, words in cases.items():
        safetensors.torch.save_file({**tensors, key: torch.ones(2)}, path)
        with pytest.raises(UserError, match=f"{key}.*{words}"):
            lora_file.from_kohya(path, pairs, rank=RANK, scale=1.0)
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 2)}
    safetensors.torch.save_file({**tensors, **text}, path)
    lora_file.from_kohya(path, pairs, rank=RANK, scale=1.0)
    assert lora_file.text_encoder_modules(path) == 1
    safetensors.torch.save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, path)
    with pytest.raises(UserError, match="another model or target"):
        lora_file.from_kohya(path, pairs, rank=RANK, scale=1.0)


def test_a_lora_of_the_text_encoder_alone_is_taken(tmp_path):
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    generator = torch.Generator().manual_seed(0)
    plain = pipeline.load_pipeline(base_model.Base(MODEL))
    layer = plain.text_encoder.state_dict()
    key = next(k for k in layer if k.endswith("encoder.layers.0.mlp.fc1.weight"))
    out, inside = layer[key].shape
    down, up = torch.randn(2, inside, generator=generator), torch.randn(out, 2, generator=generator)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    safetensors.torch.save_file(tensors, tmp_path / "te.safetensors")
    pipe = added(tmp_path / "te.safetensors")
    with torch.no_grad():
        layer[key].add_(up @ down * 0.5)
    one, two = (text_states(p.tokenizer, p.text_encoder, ["a digit"], 1) for p in (pipe, plain))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_a_lora_of_another_model_is_one_sentence(unet, tmp_path):
    path = save(unet, tmp_path / "x.safetensors")
    tensors = safetensors.torch.load_file(path)
    name = next(k for k in tensors if k.endswith("lora_down.weight"))
    for changed in (
        {**tensors, name: torch.ones(4, 999)},
        {**tensors, "lora_unet_other.lora_up.weight": torch.ones(2, 2)},
    ):
        safetensors.torch.save_file(changed, path)
        with pytest.raises(UserError, match="is a LoRA for another model: ") as told:
            added(path)
        assert len(str(told.value)) < 300 + len(str(path))
    safetensors.torch.save_file({"x": torch.ones(1)}, path)
    with pytest.raises(UserError, match="is no LoRA"):
        added(path)
    safetensors.torch.save_file({**tensors, name: tensors[name] * float("nan")}, path)
    with pytest.raises(UserError, match=f"damaged: {name}"):
        added(path)


def test_a_start_that_does_not_fit_is_refused_before_encoding(unet, digit_folders, tmp_path, trainer):
    weights = LoraNetwork(unet).weights()
    lora_file.save(tmp_path / "rank4.safetensors", lora_file.to_kohya(weights, alpha=4.0, dtype=torch.float32), {})
    wide = {key: torch.zeros(value.shape[0], value.shape[1] + 1, *value.shape[2:]) for key, value in weights.items()}
    lora_file.save(tmp_path / "wide.safetensors", lora_file.to_kohya(wide, alpha=4.0, dtype=torch.float32), {})
    words = ["--base", "builtin", "--prompt", "x", "--output-dir", tmp_path / "out", "--steps", 1, "--rank"]
    words = ["--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"], *words]
    for rank, name, said in ((8, "rank4", "has rank 4; give --rank 4"), (4, "wide", "is a LoRA for another model")):
        done = trainer(*words, rank, "--init-lora", tmp_path / f"{name}.safetensors")
        assert done.returncode == 2
        assert said in done.stderr
    assert not list((tmp_path / "out").rglob("cache"))


def test_a_sampler_that_knows_no_zero_terminal_snr_is_refused():
    from types import SimpleNamespace

    from diffusers import DDIMScheduler

    for zero in (False, True):
        pipe = SimpleNamespace(scheduler=DDIMScheduler(rescale_betas_zero_snr=zero, timestep_spacing="trailing"))
        for name in ("dpm++", "euler_a"):
            pipeline.set_sampler(pipe, name)
            assert bool(pipe.scheduler.config.rescale_betas_zero_snr) == zero
        if zero:
            with pytest.raises(UserError, match="--sampler pndm: knows no zero terminal SNR"):
                pipeline.set_sampler(pipe, "pndm")
        else:
            pipeline.set_sampler(pipe, "pndm")
