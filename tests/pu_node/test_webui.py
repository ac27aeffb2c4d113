"""The LoRA file in A1111 and Forge, by the rules of their loaders, written out here again; and the two as hosts.

The rules were read in Forge's source (network.py, networks.py, ui_edit_user_metadata.py, the key map of its LoRA
loader) and in copies of A1111's.
"""

import datetime
import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import webui_stub
from diffusers import UNet2DConditionModel

from trainer.models import lora_file
from trainer.models.networks import lora_target_names

ROOT = Path(__file__).parents[2]
BLOCK = [f"transformer_blocks.0.{a}.to_{p}" for a in ("attn1", "attn2") for p in ("q", "k", "v", "out.0")]
LAYERS = ["proj_in", "proj_out", *BLOCK, "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"]
# where the original Stable Diffusion 1.x has its 16 spatial transformers
PLACES = [f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)] + ["middle_block.1"]
PLACES += [f"output_blocks.{i}.1" for i in range(3, 12)]
MODEL = {f"diffusion_model.{place}.{layer}" for place in PLACES for layer in LAYERS}


def a1111_name(key):
    """kohya's name -> that of the original model, its dots replaced: what A1111 looks up among its modules."""
    if found := re.fullmatch(r"lora_unet_down_blocks_(\d+)_attentions_(\d+)_(.+)", key):
        return f"diffusion_model_input_blocks_{1 + int(found[1]) * 3 + int(found[2])}_1_{found[3]}"
    if found := re.fullmatch(r"lora_unet_mid_block_attentions_0_(.+)", key):
        return f"diffusion_model_middle_block_1_{found[1]}"
    if found := re.fullmatch(r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)", key):
        return f"diffusion_model_output_blocks_{int(found[1]) * 3 + int(found[2])}_1_{found[3]}"
    return key


def forge_keys():
    """Forge's map: every name that a module may have in a LoRA -> the module. Built from diffusers' paths."""
    diffusers = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)] + ["mid_block.attentions.0"]
    diffusers += [f"up_blocks.{i}.attentions.{j}" for i in (1, 2, 3) for j in range(3)]
    found = {}
    for path, place in zip(diffusers, PLACES, strict=True):
        for layer in LAYERS:
            found[f"lora_unet_{path}.{layer}".replace(".", "_")] = f"diffusion_model.{place}.{layer}"
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A LoRA for the full shape of Stable Diffusion 1.5, as a run writes it."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    weights = {}
    for path in lora_target_names(unet):
        weights[f"{path}.down"], weights[f"{path}.up"] = torch.ones(1, 1), torch.ones(1, 1)
    tensors = lora_file.to_kohya(weights, alpha=1.0, dtype=torch.float16)
    standard = lora_file.standard_metadata(
        name="no-more",
        rank=1,
        alpha=1.0,
        resolution=512,
        base_name="base.safetensors",
        base_hash="ab",
        finished="2026-01-02T03:04:05Z",
        prediction_type="epsilon",
        clip_skip=1,
    )
    started = datetime.datetime(2026, 1, 2, 3, 0, tzinfo=datetime.timezone.utc).timestamp()
    captions = ["a photo, beach", "a photo, jane roe smiling", "a photo"]
    images = lora_file.dataset_metadata(captions, ["Jane Roe", None], started=started, shows_tags=False)
    path = tmp_path_factory.mktemp("lora") / "no-more-2.safetensors"
    lora_file.save(path, tensors, {**standard, **images})
    return path


def test_a1111_finds_a_module_for_every_key(file):
    modules = {name.replace(".", "_") for name in MODEL}
    keys = safetensors.torch.load_file(file)
    assert len(keys) == 3 * 192
    for key in keys:
        name, part = key.split(".", 1)
        assert a1111_name(name) in modules
        assert part in ("lora_down.weight", "lora_up.weight", "alpha")


def test_forge_leaves_no_key_over(file):
    left = set(safetensors.torch.load_file(file))
    for name, module in forge_keys().items():
        assert module in MODEL
        left -= {f"{name}.{part}" for part in ("lora_up.weight", "lora_down.weight", "alpha")}
    assert not left


@pytest.fixture
def metadata(file):
    """As both read it: JSON objects are opened."""
    found = lora_file.read_metadata(file)
    return {key: json.loads(value) if value.startswith("{") else value for key, value in found.items()}


def test_the_list_shows_alias_version_date_and_counts(metadata):
    assert metadata["ss_output_name"] == "no-more"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"  # Forge's SD1
    assert metadata["ss_v2"] != "True"  # A1111's SD1: neither this
    assert not metadata["ss_base_model_version"].startswith("sdxl_")  # nor that
    date = datetime.datetime.fromtimestamp(float(metadata["ss_training_started_at"]), datetime.timezone.utc)
    assert f"{date:%Y-%m-%d %H:%M}" == "2026-01-02 03:00"
    assert sum(int(folder.get("img_count", 0)) for folder in metadata["ss_dataset_dirs"].values()) == 5
    assert metadata["ss_dataset_dirs"].keys() == {"unlabeled", "sensitive"}


def test_tags_are_told_only_where_asked_for(metadata):
    assert metadata["ss_tag_frequency"] == {}
    shown = lora_file.dataset_metadata(["x"], ["Jane Roe"], started=0, shows_tags=True)
    assert json.loads(shown["ss_tag_frequency"]) == {"unlabeled": {"x": 1}, "sensitive": {"jane roe": 1}}


@pytest.fixture
def webui(request, tmp_path, monkeypatch):
    """pu_node.webui with a webui's modules around it; what these are asked is in asked.txt."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("modules", "backend")]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    (tmp_path / "models" / "Stable-diffusion").mkdir(parents=True)
    (tmp_path / "models" / "Stable-diffusion" / "own.safetensors").touch()
    webui_stub.pretend(request.param, tmp_path, [])
    found = importlib.import_module("pu_node.webui_host")
    found.job.cache_clear()
    yield found
    found.job.cache_clear()
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("modules", "backend"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("webui", "asked"),
    [
        ("a1111", ["unload_model_weights locked", "send_model_to_device locked", "refresh locked"]),
        ("forge", ["unload_all_models locked", "refresh locked"]),
    ],
    indirect=["webui"],
)
def test_the_card_is_taken_under_the_lock_and_given_back(webui, asked, tmp_path):
    from modules.call_queue import queue_lock

    with pytest.raises(RuntimeError, match="inside"), webui.card(lambda: None):
        assert queue_lock.locked()
        assert (tmp_path / "asked.txt").read_text().splitlines() == asked[:1]
        raise RuntimeError("inside")
    assert not queue_lock.locked()
    assert (tmp_path / "asked.txt").read_text().splitlines() == asked


@pytest.mark.parametrize("webui", ["a1111"], indirect=True)
def test_while_the_webui_is_busy_nothing_is_unloaded_and_waiting_can_end(webui, tmp_path):
    from modules.call_queue import queue_lock

    def cancelled():
        raise InterruptedError

    with queue_lock, pytest.raises(InterruptedError), webui.card(cancelled):
        raise AssertionError("it had no right to the card")
    assert not queue_lock.locked()
    with pytest.raises(InterruptedError), webui.card(cancelled):  # cancelled in the last moment
        raise AssertionError("nobody wanted it any more")
    assert not queue_lock.locked()
    assert not (tmp_path / "asked.txt").exists()


@pytest.mark.parametrize("webui", ["a1111"], indirect=True)
def test_the_card_is_given_back_whatever_fails(webui, tmp_path, monkeypatch):
    from modules import sd_models
    from modules.call_queue import queue_lock

    def fails(*_):
        raise MemoryError

    for name in ("unload_model_weights", "send_model_to_device"):
        with monkeypatch.context() as patched:
            patched.setattr(sd_models, name, fails)
            with pytest.raises(MemoryError), webui.card(lambda: None):
                pass
        assert not queue_lock.locked()
        assert (tmp_path / "asked.txt").read_text().splitlines()[-1] == "refresh locked"


@pytest.mark.parametrize("webui", ["forge"], indirect=True)
def test_folders_and_lists_are_the_webuis(webui, tmp_path):
    host = webui.job().host
    assert webui.job() is webui.job()
    assert host.checkpoints() == {"own.safetensors": tmp_path / "models" / "Stable-diffusion" / "own.safetensors"}
    assert host.roots == [tmp_path]
    assert host.device == "auto"
    assert host.lora_folder() == tmp_path / "models" / "Lora"
    assert host.output == tmp_path / "outputs" / "pu_unlearn"  # not the LoRA folder: that lists every safetensors in it


@pytest.mark.parametrize("webui", ["a1111"], indirect=True)
def test_the_webuis_second_card_is_trained_on(webui):
    from modules import shared

    shared.cmd_opts.device_id = "1"
    assert webui.job().host.device == "cuda:1"
