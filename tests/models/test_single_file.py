"""Single-file checkpoints: shapes, loading against diffusers' own converter, and what is refused, in which words."""

import json
import pickle
import shutil

import pytest
import torch
from diffusers import DDPMScheduler
from random_checkpoint import FULL, SMALL, Evil, Shape, fake, part, random_state, shapes, write
from safetensors.torch import load_file, save_file

from trainer.builtin import MODEL
from trainer.common import model_files
from trainer.common.errors import UserError
from trainer.models import base_model, merge, pipeline, single_file
from trainer.models.text_states import text_states

LOADERS = {"unet": base_model.load_unet, "vae": base_model.load_vae, "text_encoder": base_model.load_text_encoder}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write(tmp_path_factory.mktemp("base") / "küsten modell.safetensors", SMALL)


def test_full_shape_is_that_of_sd_1_5():
    """The public sizes: 859,520,964 in the U-Net, 83,653,863 in the VAE, 123,060,480 in the text encoder."""
    sizes = shapes(FULL)
    counts = {p: sum(torch.Size(s).numel() for n, s in sizes.items() if n.startswith(p)) for p in ("m", "f", "c")}
    assert counts == {"m": 859_520_964, "f": 83_653_863, "c": 123_060_480 + 77}


@pytest.mark.parametrize("shape", [FULL, SMALL], ids=["full", "small"])
@pytest.mark.parametrize("part", ["unet", "vae"])
def test_configs_and_names_fit_diffusers(shape, part):
    """Our config from shapes makes a model whose names and sizes are what diffusers' converter makes of ours."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.loaders import single_file_utils

    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    convert = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint,
        "vae": single_file_utils.convert_ldm_vae_checkpoint,
    }[part]
    config = single_file.part_config(shapes(shape), part)
    with torch.device("meta"):
        made = kind.from_config(config)
        state = {name: torch.empty(size) for name, size in shapes(shape).items()}
    converted = convert(state, dict(made.config))
    assert {n: v.shape for n, v in converted.items()} == {n: v.shape for n, v in made.state_dict().items()}


def test_sd_1_5_config_is_the_published_one():
    config = single_file.part_config(shapes(FULL), "unet")
    assert config["block_out_channels"] == [320, 640, 1280, 1280]
    assert config["layers_per_block"] == 2
    assert config["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert config["cross_attention_dim"] == 768
    text = single_file.part_config(shapes(FULL), "text_encoder")
    assert (text["num_hidden_layers"], text["num_attention_heads"], text["intermediate_size"]) == (12, 12, 3072)


def test_parts_load_with_their_weights(small):
    base = base_model.Base(small)
    base_model.check(base)
    state = random_state(SMALL)
    unet = base_model.load_unet(base, torch.float32)
    key = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    loaded = unet.state_dict()["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
    assert torch.equal(loaded, state[f"model.diffusion_model.{key}"].float())
    vae = base_model.load_vae(base, torch.float32)
    attention = vae.state_dict()["decoder.mid_block.attentions.0.to_q.weight"]
    assert torch.equal(attention, state["first_stage_model.decoder.mid.attn_1.q.weight"].float()[:, :, 0, 0])
    assert vae.config.scaling_factor == 0.18215
    tokenizer, encoder = base_model.load_text_encoder(base, torch.float32)
    assert len(tokenizer) == 49408
    embedding = encoder.get_input_embeddings().weight
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert torch.equal(embedding, state[name].float())
    assert not any(p.requires_grad for part in (unet, vae, encoder) for p in part.parameters())


def test_same_pictures_as_the_folder_diffusers_saves(small, tmp_path):
    """The file and the folder made of it give the same latents, text states and predictions."""
    pipe = pipeline.load_pipeline(base_model.Base(small))
    pipe.save_pretrained(tmp_path / "folder")
    again = pipeline.load_pipeline(base_model.Base(tmp_path / "folder"))
    ids = pipe.tokenizer("a fox", padding="max_length", max_length=77, return_tensors="pt").input_ids
    x, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([500])

    def outcome(p):
        with torch.no_grad():
            text = p.text_encoder(ids).last_hidden_state
            return text, p.unet(x, t, text).sample, p.vae.decode(x).sample

    for one, two in zip(outcome(pipe), outcome(again), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_v_prediction(small, tmp_path):
    assert base_model.load_noise_schedule(base_model.Base(small)).prediction_type == "epsilon"
    assert base_model.load_noise_schedule(base_model.Base(small, prediction="v")).prediction_type == "v_prediction"
    marked = fake(tmp_path / "v.safetensors", {**shapes(SMALL), "v_pred": ()})
    assert base_model.load_noise_schedule(base_model.Base(marked)).prediction_type == "v_prediction"
    said = fake(tmp_path / "m.safetensors", shapes(SMALL), {"modelspec.prediction_type": "v"})
    assert base_model.load_noise_schedule(base_model.Base(said)).prediction_type == "v_prediction"


def test_another_vae(small, tmp_path):
    """With or without LDM's prefix, and for a checkpoint that has none."""
    state = {k: v for k, v in random_state(SMALL).items() if k.startswith("first_stage_model.")}
    bare = {k.removeprefix("first_stage_model."): v + 0.5 for k, v in state.items()}
    save_file(bare, tmp_path / "vae.safetensors")
    base = base_model.Base(small, tmp_path / "vae.safetensors")
    base_model.check(base)
    weight = base_model.load_vae(base, torch.float32).encoder.conv_in.weight
    assert torch.equal(weight, bare["encoder.conv_in.weight"].float())
    assert base_model.part_hash(base, "vae") != base_model.part_hash(base_model.Base(small), "vae")
    assert base_model.part_hash(base, "unet") == base_model.part_hash(base_model.Base(small), "unet")
    rest = {k: s for k, s in shapes(SMALL).items() if not k.startswith("first_stage_model.")}
    without = fake(tmp_path / "without.safetensors", rest)
    base_model.check(base_model.Base(without, tmp_path / "vae.safetensors"))
    with pytest.raises(UserError, match=r"lacks the vae \(another VAE: --vae\)"):
        base_model.check(base_model.Base(without))


@pytest.mark.parametrize("kind", ["ckpt", "pt", "diffusers", "diffusers old", "to_q"])
def test_a_vae_as_people_download_it(kind, small, tmp_path):
    """Each gives the weights of the same VAE under LDM's names, bit by bit; a discriminator beside it is left out."""
    plain = base_model.load_vae(base_model.Base(small), torch.float32).state_dict()
    bare = part(random_state(SMALL), "first_stage_model.")
    file = tmp_path / f"vae.{kind if kind in ('ckpt', 'pt') else 'safetensors'}"
    if kind in ("ckpt", "pt"):
        torch.save({"state_dict": {**bare, "loss.discriminator.main.0.weight": torch.ones(3)}, "epoch": 1}, file)
    elif kind == "to_q":
        new = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
        renamed = {}
        for name, value in bare.items():
            start, attention, end = name.rpartition("mid.attn_1.")
            first, _, rest = end.rpartition(".")
            flat = value[:, :, 0, 0].contiguous() if attention and value.ndim == 4 else value
            renamed[f"{start}{attention}{new[first]}.{rest}" if attention else name] = flat
        save_file(renamed, file)
    else:
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"} if "old" in kind else {}
        renamed = {}
        for name, value in plain.items():
            for one, other in old.items():
                name = name.replace(f".{one}.", f".{other}.")
            renamed[name] = value.clone()
        save_file(renamed, file)
    base = base_model.Base(small, file)
    base_model.check(base)
    found = base_model.load_vae(base, torch.float32).state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert base_model.part_config(base, "vae") == base_model.part_config(base_model.Base(small), "vae")


def test_a_pickled_vae_runs_no_code_and_is_named(small, tmp_path, capfd):
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"--vae: .*evil\.pt is not opened: it holds more than weights"):
        base_model.load_vae(base_model.Base(small, tmp_path / "evil.pt"), torch.float32)
    assert "must never run" not in capfd.readouterr().out
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"--vae: .*x.pt holds no VAE"):
        base_model.load_vae(base_model.Base(small, tmp_path / "x.pt"), torch.float32)


@pytest.mark.parametrize("metadata", [None, {}, {"a": "b"}])
def test_metadata_that_are_text_or_nothing_load(metadata, tmp_path):
    path = with_metadata(tmp_path / "x.safetensors", metadata)
    base = base_model.Base(path)
    base_model.check(base)
    assert base_model.load_noise_schedule(base).prediction_type == "epsilon"
    assert base_model.load_vae(base, torch.float32).config.latent_channels == 4


@pytest.mark.parametrize("metadata", [{"steps": 3}, {"tags": ["a"]}, {"x": None}, ["a"], 7])
def test_metadata_that_are_no_text_are_refused(metadata, tmp_path):
    path = with_metadata(tmp_path / "x.safetensors", metadata)
    with pytest.raises(UserError, match=r"its metadata .* something other than text"):
        base_model.check(base_model.Base(path))


def with_metadata(path, metadata):
    data = write(path, SMALL).read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.dumps({"__metadata__": metadata, **json.loads(data[8 : 8 + length])}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    return path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("part", "key", "named"),
    [
        ("unet", "model.diffusion_model.out.2.weight", "unet: 1 of 1152 values of conv_out.weight"),
        ("vae", "first_stage_model.decoder.conv_out.bias", "vae: 1 of 3 values of decoder.conv_out.bias"),
        (
            "text_encoder",
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            "final_layer_norm.bias are not",
        ),
    ],
)
def test_a_weight_that_is_not_finite_is_named(part, key, named, value, tmp_path):
    state = random_state(SMALL)
    state[key].view(-1)[0] = value
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=named):
        LOADERS[part](base_model.Base(tmp_path / "x.safetensors"), torch.float32)


def test_large_weights_are_no_fault(tmp_path):
    """Their sum is beyond fp16."""
    state = random_state(SMALL)
    state["model.diffusion_model.out.2.weight"][:] = 60000
    save_file(state, tmp_path / "x.safetensors")
    base_model.load_unet(base_model.Base(tmp_path / "x.safetensors"), torch.float16)


def test_missing_weights_are_named(tmp_path):
    state = random_state(SMALL)
    for end in ("weight", "bias"):
        del state[f"model.diffusion_model.middle_block.1.norm.{end}"]
    save_file(state, tmp_path / "x.safetensors")
    names = r"mid_block.attentions.0.norm.weight, mid_block.attentions.0.norm.bias\)"
    with pytest.raises(UserError, match=names) as told:
        base_model.load_unet(base_model.Base(tmp_path / "x.safetensors"), torch.float32)
    assert "meta" not in str(told.value)


def test_a_checkpoint_with_lora_in_a_name_is_a_checkpoint(tmp_path):
    extra = {"lora_strength": (1,), "model.diffusion_model.lora_x.lora_down.weight": (4, 4)}
    base_model.check(base_model.Base(fake(tmp_path / "x.safetensors", {**shapes(SMALL), **extra})))


def test_fp8_weights_are_multiplied_by_their_scales(tmp_path):
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    state = random_state(SMALL)
    small = state[f"{key}.weight"].float()
    scale = small.abs().max() / 448
    state[f"{key}.weight"] = (small / scale).to(torch.float8_e4m3fn)
    wanted = state[f"{key}.weight"].float() * scale
    state |= {f"{key}.scale_weight": scale, f"{key}.scale_input": torch.ones(()), "scaled_fp8": torch.ones(2)}
    save_file(state, tmp_path / "x.safetensors")
    base = base_model.Base(tmp_path / "x.safetensors")
    base_model.check(base)
    found = base_model.load_unet(base, torch.float32).state_dict()
    assert torch.equal(found["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"], wanted)
    assert (wanted - small).abs().max() < 0.05 * small.abs().max()
    merge.save_checkpoint(base, tmp_path / "y.safetensors", lambda name, value: value)
    again = load_file(tmp_path / "y.safetensors")
    assert torch.equal(again[f"{key}.weight"], wanted.half())
    assert f"{key}.scale_weight" not in again


def test_zero_terminal_snr_of_a_file(tmp_path):
    """By each of its signs; the last timestep is noise alone, for training and pictures alike."""
    signs = {"key": ({"ztsnr": (), "v_pred": ()}, {}), "metadata": ({"v_pred": ()}, {"ss_zero_terminal_snr": "True"})}
    for name, (extra, metadata) in signs.items():
        base = base_model.Base(fake(tmp_path / f"{name}.safetensors", {**shapes(SMALL), **extra}, metadata))
        schedule = base_model.load_noise_schedule(base)
        assert schedule.alphas_cumprod[-1].item() == 0
        assert schedule.snr(torch.tensor([999])).item() < 1e-7
        assert base_model.scheduler_config(base)["timestep_spacing"] == "trailing"


SCHEDULES = {
    "zero SNR": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "trained betas": {"trained_betas": [0.001 + 0.00001 * i for i in range(1000)]},
    "linear": {"beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_training_follows_a_folders_schedule(kind, tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "x")
    file = folder / "scheduler" / "scheduler_config.json"
    settings = {**json.loads(file.read_text()), **SCHEDULES[kind]}
    file.write_text(json.dumps(settings))
    base = base_model.Base(folder)
    base_model.check(base)
    found = base_model.load_noise_schedule(base).alphas_cumprod
    assert torch.equal(found, DDPMScheduler.from_config(settings).alphas_cumprod)
    assert torch.equal(found, pipeline.load_pipeline(base).scheduler.alphas_cumprod)
    assert not torch.equal(found, base_model.load_noise_schedule(base_model.Base(MODEL)).alphas_cumprod)


@pytest.mark.parametrize("wrong", [{"trained_betas": [0.1]}, {"beta_schedule": "sigmoid"}, {"beta_start": "x"}])
def test_an_unknown_schedule_is_refused_by_name(wrong, tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "x")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong}))
    with pytest.raises(UserError, match=next(iter(wrong))):
        base_model.check(base_model.Base(folder))


def test_more_words_and_more_positions_load(tmp_path):
    """A vocabulary grown by textual inversion, and an encoder of 248 positions: prompts still take 77 of them."""
    state = random_state(SMALL)
    clip = "cond_stage_model.transformer.text_model.embeddings"
    words, places = state[f"{clip}.token_embedding.weight"], state[f"{clip}.position_embedding.weight"]
    plain = write(tmp_path / "plain.safetensors", SMALL)
    state[f"{clip}.token_embedding.weight"] = torch.cat([words, words[:2]])
    state[f"{clip}.position_embedding.weight"] = torch.cat([places, places, places, places[:17]])
    state[f"{clip}.position_ids"] = torch.arange(248).view(1, 248)
    save_file(state, tmp_path / "grown.safetensors")
    one, two = (
        text_states(*base_model.load_text_encoder(base_model.Base(p), torch.float32), ["a fox"], 1)
        for p in (plain, tmp_path / "grown.safetensors")
    )
    assert torch.equal(one, two)


def without(prefix):
    return {k: s for k, s in shapes(SMALL).items() if not k.startswith(prefix)}


REFUSED = {
    "SDXL": ({**shapes(SMALL), "conditioner.embedders.0.x": (1,)}, "is SDXL"),
    "SD 3": ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "is Stable Diffusion 3"),
    "FLUX": ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "is FLUX"),
    "SD 2": ({**without("cond_stage"), "cond_stage_model.model.ln_final.weight": (1,)}, "is Stable Diffusion 2.x"),
    "inpainting": (shapes(Shape(**{**SMALL.__dict__, "in_channels": 9})), "is an inpainting model"),
    "linear": ({**shapes(SMALL), "model.diffusion_model.input_blocks.1.1.proj_in.weight": (32, 32)}, "Diffusion 2.x"),
    "LoRA": ({"lora_unet_x.lora_down.weight": (1,)}, "is a LoRA"),
    "peft LoRA": ({"unet.x.lora_A.weight": (1,)}, "is a LoRA"),
    "VAE": (part(shapes(SMALL), "first_stage_model."), "is a VAE"),
    "diffusers part": ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "one part of a diffusers folder"),
    "textual inversion": ({"emb_params": (1, 768)}, "is a textual inversion"),
    "ControlNet": ({"control_model.x": (1,)}, "is a ControlNet"),
    "LoHa": ({"lora_unet_x.hada_w1_a": (1,)}, "is a LoRA"),
    "EMA alone": ({**without("model.diff"), "model_ema.diffusion_modelout2weight": (1,)}, "only as an average .EMA."),
    "something": ({"x": (1,)}, "no Stable Diffusion checkpoint"),
    "no text encoder": (without("cond_stage_model."), "lacks the text encoder"),
    "half a U-Net": (without("model.diffusion_model.out"), "lacks weights of it"),
    "width": ({**without("cond"), **{k: s for k, s in shapes(FULL).items() if k.startswith("cond")}}, "width 64"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_models_are_named(kind, tmp_path):
    sizes, words = REFUSED[kind]
    with pytest.raises(UserError, match=words):
        base_model.check(base_model.Base(fake(tmp_path / "x.safetensors", sizes)))


def test_files_that_are_no_model(small, tmp_path):
    found = {
        "empty file": b"",
        "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "a web page": b"<!DOCTYPE html><html></html>",
        "not a .safetensors": b"\x10\0\0\0\0\0\0\0 no json at all",
        "a pickle under another name": b"PK\x03\x04 and so on and on",
        "cut off": small.read_bytes()[:-1000],
    }
    for words, data in found.items():
        path = tmp_path / "x.safetensors"
        path.write_bytes(data)
        with pytest.raises(UserError, match=words):
            base_model.check(base_model.Base(path))
    for name, words in (("x.ckpt", "torch 1.6"), ("x.gguf", "neither a folder nor a .safetensors or .ckpt")):
        (tmp_path / name).write_bytes(pickle.dumps({}))
        with pytest.raises(UserError, match=words):
            base_model.check(base_model.Base(tmp_path / name))


def test_a_missing_weight_is_found_when_loading(tmp_path):
    state = random_state(SMALL)
    del state["model.diffusion_model.middle_block.1.norm.weight"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="the unet has weights missing"):
        base_model.load_unet(base_model.Base(tmp_path / "x.safetensors"), torch.float32)


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize("is_there", [True, False], ids=["misshapen", "missing"])
def test_a_wrong_weight_of_a_folder_is_found_when_loading(part, is_there, tmp_path):
    """diffusers and transformers put random numbers in the place of one that is missing."""
    folder = shutil.copytree(MODEL, tmp_path / "x")
    file = folder / part / f"{model_files.WEIGHTS[part]}.safetensors"
    state = load_file(file)
    name = next(name for name in state if name.endswith("norm1.weight"))
    rest = {key: value for key, value in state.items() if key != name}
    save_file({**rest, name: torch.ones(3)} if is_there else rest, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights.*missing|lacks weights"):
        LOADERS[part](base_model.Base(folder), torch.float32)


def test_what_else_a_text_encoder_has_is_left_out(small, tmp_path):
    """As whole CLIP models and older files have it; the vision model's layers are not counted, either."""
    clip, vision = "cond_stage_model.transformer", "vision_model.encoder.layers.0.mlp.fc1.weight"
    extra = {
        "cond_stage_model.logit_scale": torch.ones(()),
        f"{clip}.text_projection.weight": torch.ones(64, 64),
        f"{clip}.{vision}": torch.ones(8, 8),
        "text_model.embeddings.position_ids": torch.ones(1, 77),
    }
    save_file({**random_state(SMALL), **extra}, tmp_path / "x.safetensors")
    base = base_model.Base(tmp_path / "x.safetensors")
    base_model.check(base, clip_skip=2)
    found, plain = (
        base_model.load_text_encoder(b, torch.float32)[1].state_dict() for b in (base, base_model.Base(small))
    )
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("folder", [True, False])
def test_clip_skip_has_as_many_layers_as_there_are(folder, small):
    base = base_model.Base(MODEL if folder else small)
    base_model.check(base, clip_skip=2)
    with pytest.raises(UserError, match=r"--clip-skip 3: the text encoder of .* has 2 layers"):
        base_model.check(base, clip_skip=3)
