"""The pack in a real ComfyUI (see comfyui_server). Skipped, and counted as such, where there is none."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from comfyui_server import COMFYUI, PYTHON, ROOT, TINY, demo, needs_comfyui, server, workflow
from diffusers import UNet2DConditionModel
from random_checkpoint import FULL, write
from safetensors.torch import load_file, save_file

from trainer.models import lora_file
from trainer.models.networks import lora_target_names

pytestmark = needs_comfyui
__all__ = ["server"]


def images_of(history):
    """What PreviewImage shows; PU Unlearn's own results lie in the output folder."""
    return [i for output in history["outputs"].values() for i in output.get("images", []) if i["type"] == "temp"]


def trainers(server):
    """Processes of our trainer below the server."""
    found = subprocess.run(["pgrep", "-P", str(server.process.pid), "-f", "trainer/__main__.py"], capture_output=True)
    return found.stdout.split()


def test_loads_without_a_word(server):
    log = server.log.read_text()
    assert "0.0 seconds" in log or "0.1 seconds" in log
    ours = [line for line in log.splitlines() if "pu-unlearn" in line or "PU Unlearn" in line]
    assert len(ours) == 1, ours  # its import time
    names = {"PUDataset", "PUOptions", "PUUnlearn", "PUApplyLoRA", "PUCompare", "PUPlan"}
    names |= {"PUMakeData", "PUAudit", "PUEvaluate", "PUCompareRuns", "PUCheckpoint", "PUCheckpointFromModel"}
    assert names <= server.get("object_info").keys()


def test_every_widget_is_where_the_templates_have_it(server):
    """widgets_values is positional: the order in the templates is that of the nodes."""
    from make_workflows import NODES

    for name, (widgets, links, outputs) in NODES.items():
        if name == "MarkdownNote":
            continue
        info = server.get(f"object_info/{name}")[name]
        order = [*info["input_order"].get("required", []), *info["input_order"].get("optional", [])]
        kinds = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        typed = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
        is_widget = {
            n: isinstance(k[0], list) or (k[0] in typed and not k[1].get("forceInput")) for n, k in kinds.items()
        }
        assert [n for n in order if is_widget[n]] == widgets, name
        assert [n for n in order if not is_widget[n]] == [n for n, _ in links], name
        assert info["output"] == [kind for _, kind in outputs], name
        assert all(kinds[n][1].get("tooltip") for n in order if name.startswith("PU")), name


def test_templates_are_listed(server):
    listed = server.get("workflow_templates")["pu-unlearn"]
    assert sorted(listed) == sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))


def test_demo_trains_and_comes_from_the_cache_after_a_restart(server):
    history, last = server.run(demo())
    assert last[0] == "execution_success", last
    assert len(images_of(history)) == 2
    assert history["outputs"]["3"]["lora"] == ["pu_unlearn_demo/demo.safetensors"]
    lora = server.base / "output" / "loras" / "pu_unlearn_demo" / "demo.safetensors"
    made = lora.stat().st_mtime_ns
    assert "pu_unlearn_demo/demo.safetensors" in server.get("models/loras")
    server.stop()
    server.start()
    started = time.time()
    _, last = server.run(demo())
    assert last[0] == "execution_success"
    assert time.time() - started < 5
    assert lora.stat().st_mtime_ns == made
    for number in (2, 3):
        _, last = server.run(demo(retrain=True, steps=4))
        assert lora.with_name(f"demo-{number}.safetensors").exists()


def start_long(server, name):
    """A run that is in the middle of its steps. Returns: the server's answer to the prompt."""
    answer = server.post("prompt", {"prompt": demo(steps=5000, name=name)})
    events = server.base / "output" / "pu_unlearn" / name / "events.jsonl"
    for _ in range(3000):  # a busy machine takes more than a minute to its first step
        if events.exists() and '"event": "step"' in events.read_text():
            break
        time.sleep(0.1)
    assert trainers(server)
    return answer


def test_cancel_within_two_seconds_and_the_next_run_goes_on(server):
    answer = start_long(server, "long")
    server.post("interrupt", {})
    started = time.time()
    _, last = server.wait(answer["prompt_id"])
    assert last[0] == "execution_interrupted"
    assert time.time() - started < 2
    for _ in range(600):
        if not trainers(server):
            break
        time.sleep(0.1)
    assert len(list((server.base / "output" / "pu_unlearn" / "long" / "state").glob("step*"))) == 1
    answer = server.post("prompt", {"prompt": demo(steps=5000, name="long")})
    while not (children := trainers(server)):
        time.sleep(0.1)
    child = children[0]
    assert "--resume" in subprocess.run(["ps", "-o", "args=", child], capture_output=True, text=True).stdout
    server.post("interrupt", {})
    server.wait(answer["prompt_id"])


def test_a_crash_is_told_and_the_next_prompt_runs(server):
    answer = start_long(server, "crash")
    os.kill(int(trainers(server)[0]), signal.SIGSEGV)
    _, last = server.wait(answer["prompt_id"])
    assert last[0] == "execution_error"
    assert "the trainer was stopped by SIGSEGV" in last[1]["exception_message"]
    _, last = server.run(demo(name="after-crash"))
    assert last[0] == "execution_success", last


@pytest.mark.skipif(sys.platform != "linux", reason="takes memory away from another process")
def test_out_of_memory_is_told_and_the_next_prompt_runs(server):
    import resource

    answer = start_long(server, "starved")
    child = int(trainers(server)[0])
    resource.prlimit(child, resource.RLIMIT_AS, (2**28, 2**28))  # less than it has: the next allocation fails
    _, last = server.wait(answer["prompt_id"])
    assert last[0] == "execution_error"
    assert "out of memory. " in last[1]["exception_message"]
    _, last = server.run(demo(name="after-starved"))
    assert last[0] == "execution_success", last


def test_an_error_is_one_sentence_and_the_server_lives(server):
    _, last = server.run(demo(name="bad/../name"))
    assert "must be a plain name, without folders" in last[1]["exception_message"]
    sd = workflow("unlearn-with-sd15-checkpoint", checkpoint="tiny.safetensors", ckpt_name="tiny.safetensors", steps=1)
    sd["3"]["inputs"]["prompt"] = ""
    _, last = server.run(sd)
    assert last[0] == "execution_error"
    assert "images have no caption" in last[1]["exception_message"]
    assert server.get("system_stats")


@pytest.mark.parametrize("path", ["../models", "/etc", "unlabeled/../../models", "sensitive/..", "", "."])
def test_folders_outside_the_input_folder_are_refused(server, path):
    sd = workflow("unlearn-with-sd15-checkpoint", checkpoint="tiny.safetensors", ckpt_name="tiny.safetensors")
    sd["3"]["inputs"]["unlabeled"] = path
    answer = server.post("prompt", {"prompt": sd})
    assert "is no subfolder of ComfyUI's input folder" in json.dumps(answer), answer


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "other.safetensors"])
def test_checkpoints_outside_the_list_are_refused(server, name):
    assert "is not in the list of checkpoints" in server.post("prompt", {"prompt": demo(checkpoint=name)})["refused"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "other.safetensors"])
def test_loras_outside_the_list_are_refused(server, name):
    sd = workflow("unlearn-with-sd15-checkpoint", checkpoint="tiny.safetensors", ckpt_name="tiny.safetensors")
    (apply,) = (node for node in sd.values() if node["class_type"] == "PUApplyLoRA")
    apply["inputs"]["lora_name"] = name
    assert "is not in the list of LoRAs" in json.dumps(server.post("prompt", {"prompt": sd}))


def test_audit_looks_into_the_demos_folder(server):
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    node = {"class_type": "PUAudit", "inputs": {"checkpoint": "[built-in digits demo]", "top": 16}}
    history, last = server.run({"1": node, "2": shown})
    assert last[0] == "execution_success", last
    assert len(images_of(history)) == 1
    assert (server.base / "output" / "pu_unlearn" / "pu-audit" / "audit.csv").exists()


EVALUATE = {
    "checkpoint": "[built-in digits demo]",
    "lora_name": "[from input]",
    "prompt": "a photo of a digit",
    "pictures": 4,
    "resolution": 64,
    "labeled": "[none]",
    "retain_prompts": "a photo of the digit two",
}


def test_what_was_trained_is_evaluated(server):
    graph = demo()
    (train,) = (key for key, node in graph.items() if node["class_type"] == "PUUnlearn")
    graph["30"] = {"class_type": "PUEvaluate", "inputs": {**EVALUATE, "path": [train, 1]}}
    graph["31"] = {"class_type": "PreviewImage", "inputs": {"images": ["30", 0]}}
    _, last = server.run(graph)
    assert last[0] == "execution_success", last
    (out,) = (server.base / "output" / "pu_unlearn").glob("demo*-evaluate")  # demo-3 after a test that retrained
    assert (out / "evaluate.html").exists()
    assert len(list((out / "pictures" / "after").glob("*.png"))) == 4


def test_evaluate_takes_no_file_from_elsewhere(server):
    """A link can carry any text; a LoRA it must be, in a folder of LoRAs."""
    inputs = {**EVALUATE, "path": str(ROOT / "trainer" / "builtin" / "classifier.safetensors")}
    _, last = server.run({"1": {"class_type": "PUEvaluate", "inputs": inputs}})
    assert last[0] == "execution_error", last
    assert "is no LoRA of this ComfyUI" in str(last)
    node = {"class_type": "PUEvaluate", "inputs": {**EVALUATE, "lora_name": "../x.safetensors"}}
    answer = server.post("prompt", {"prompt": {"1": node}})
    if "refused" not in answer:  # newer ComfyUIs hold it against the list before
        _, last = server.wait(answer["prompt_id"])
        assert "is no LoRA of this ComfyUI" in str(last)


def test_runs_are_compared(server):
    for temperature in (1.0, 6.0):
        _, last = server.run(demo(name=f"warm-{temperature:g}", temperature=temperature, steps=2))
        assert last[0] == "execution_success", last
    node = {"class_type": "PUCompareRuns", "inputs": {"runs": "warm-1 | warm-6"}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    history, last = server.run({"1": node, "2": shown})
    assert last[0] == "execution_success", last
    assert len(images_of(history)) == 1
    rows = json.loads((server.base / "output" / "pu_unlearn" / "compare.json").read_text())
    assert [(row["run"], row["temperature"]) for row in rows] == [("warm-1", "1.0"), ("warm-6", "6.0")]
    node["inputs"]["runs"] = ""  # the newest
    _, last = server.run({"1": node})
    assert last[0] == "execution_success", last
    newest = json.loads((server.base / "output" / "pu_unlearn" / "compare.json").read_text())
    assert [row["run"] for row in newest][-2:] == ["warm-1", "warm-6"]
    node["inputs"]["runs"] = "warm-1 | nowhere"
    _, last = server.run({"1": node})
    assert "no training named 'nowhere'" in last[1]["exception_message"]
    node["inputs"]["runs"] = "../warm-1"
    assert "must be a plain name" in server.post("prompt", {"prompt": {"1": node}})["refused"]


MAKE = {
    "checkpoint": "[built-in digits demo]",
    "unlabeled_prompt": "",
    "n_unlabeled": 3,
    "contaminate_prompt": "a photo of the digit nine",
    "n_contaminate": 2,
    "sensitive_prompt": "",
    "n_sensitive": 3,
    "negative_prompt": "",
    "resolution": 64,
    "steps": 2,
    "guidance": 7.5,
    "sampler": "ddim",
    "seed": 0,
    "folder": "made",
}


def make_data(**changes):
    return {"class_type": "PUMakeData", "inputs": {**MAKE, **changes}}


def test_the_demo_trains_on_made_data(server):
    """On these images, not on its own; and other settings go to a folder of their own."""
    graph = demo(name="on-made", batch_unlabeled=1, batch_sensitive=1, steps=2)
    graph["20"] = make_data()
    graph["21"] = {"class_type": "PreviewImage", "inputs": {"images": ["20", 1]}}
    graph["3"]["inputs"] |= {"dataset": ["20", 0], "prior": ["20", 3]}
    history, last = server.run(graph)
    assert last[0] == "execution_success", last
    assert len(images_of(history)) == 3
    folder = server.base / "input" / "made"
    assert len(list((folder / "unlabeled").glob("*.png"))) == 5
    settings = (server.base / "output" / "pu_unlearn" / "on-made" / "config.toml").read_text()
    assert "prior = 0.4" in settings
    assert json.dumps(str(folder.resolve() / "unlabeled")) in settings
    _, last = server.run({"1": make_data(steps=3)})
    assert last[0] == "execution_success", last
    assert len(list((server.base / "input" / "made-2" / "unlabeled").glob("*.png"))) == 5


def test_a_checkpoint_makes_data(server):
    graph = {"1": make_data(checkpoint="tiny.safetensors", unlabeled_prompt="a photo", folder="tiny")}
    _, last = server.run(graph)
    assert last[0] == "execution_success", last
    first = json.loads((server.base / "input" / "tiny" / "manifest.jsonl").read_text().splitlines()[0])
    assert first.items() >= {"base": "tiny.safetensors", "resolution": 64, "guidance": 7.5}.items()


@pytest.mark.parametrize("folder", ["../models", "/etc", "a/b", "..", ""])
def test_data_is_made_below_the_input_folder_only(server, folder):
    _, last = server.run({"1": make_data(folder=folder)})
    assert "must be a plain name, without folders" in last[1]["exception_message"]


def test_sd_template_on_a_random_checkpoint(server):
    """From checkpoint and folders to pictures in ComfyUI; and the LoRA through the core loader."""
    changes = {"checkpoint": "tiny.safetensors", "ckpt_name": "tiny.safetensors", "name": "sd", "resolution": 64}
    changes |= {"width": 64, "height": 64, "count": 1, "steps": 2}
    sd = workflow("unlearn-with-sd15-checkpoint", **changes)
    sd["20"] = {
        "class_type": "PUOptions",
        "inputs": {**demo()["2"]["inputs"], "batch_unlabeled": 1, "batch_sensitive": 1},
    }
    sd["7"]["inputs"]["options"] = ["20", 0]
    history, last = server.run(sd)
    assert last[0] == "execution_success", last
    assert len(images_of(history)) == 4
    core = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny.safetensors"}},
        "2": {
            "class_type": "LoraLoader",
            "inputs": {
                "model": ["1", 0],
                "clip": ["1", 1],
                "lora_name": "sd.safetensors",
                "strength_model": 1.0,
                "strength_clip": 1.0,
            },
        },
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "x"}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["2", 0],
                "positive": ["3", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": 0,
                "steps": 1,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }
    before = len(server.log.read_text())
    _, last = server.run(core)
    assert last[0] == "execution_success", last
    assert "lora key not loaded" not in server.log.read_text()[before:]


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def test_core_nodes_give_images_and_a_model(server):
    """Load Image Dataset from Folder and Load Checkpoint in; planned only, as a training takes minutes."""
    template = workflow("unlearn-with-sd15-checkpoint", name="core", resolution=64)
    images = {**template["3"]["inputs"], "unlabeled": "unlabeled", "unlabeled_images": ["1", 0]}
    graph = {
        "1": node("LoadImageSetFromFolderNode", folder="unlabeled", resize_method="None"),
        "2": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
        "3": node("PUDataset", **images),
        "4": node("PUCheckpointFromModel", model=["2", 0], clip=["2", 1], vae=["2", 2]),
        "5": node("PUPlan", **{**template["5"]["inputs"], "dataset": ["3", 0], "checkpoint_link": ["4", 0]}),
        "6": node("PreviewImage", images=["3", 1]),
        "7": node("PreviewAny", source=["5", 0]),
    }
    history, last = server.run(graph)
    assert last[0] == "execution_success", last
    assert "MiB" in history["outputs"]["7"]["text"][0]
    made = server.base / "temp" / "pu_unlearn"
    assert sorted(len(list(folder.glob("*.png"))) for folder in made.iterdir()) == [0, 4]  # checkpoints, images
    assert len(list((made / "checkpoints").glob("model-*.safetensors"))) == 1


def test_core_nodes_take_losses_pictures_numbers_and_the_lora(server):
    graph = demo(name="core", steps=3)
    graph |= {
        "20": node("LossGraphNode", loss=["3", 7], filename_prefix="losses"),
        "21": node("SaveLoRANode", lora=["3", 0], prefix="loras/saved"),
        "22": node("PreviewImage", images=["3", 6]),
        "23": node("PreviewAny", source=["3", 12]),
    }
    history, last = server.run(graph)
    assert last[0] == "execution_success", last
    shown = history["outputs"]
    assert len(shown["20"]["images"]) == 1
    assert len(shown["22"]["images"]) > 1  # one by one
    assert 0 <= float(shown["23"]["text"][0]) <= 1  # the rate after
    (saved,) = (server.base / "output" / "loras").glob("saved*.safetensors")
    assert (
        load_file(saved).keys()
        == load_file(server.base / "output" / "loras" / "pu_unlearn_demo" / "core.safetensors").keys()
    )


PATCHED = """
import json, sys
checkpoint, file = sys.argv[1:]
sys.argv = ["x", "--cpu", "--force-fp32"]
import comfy.options; comfy.options.enable_args_parsing()
import comfy.lora, comfy.sd, comfy.utils
model, clip, *_ = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=False)
lora = comfy.utils.load_torch_file(file, safe_load=True)
patched, _ = comfy.sd.load_lora_for_models(model, clip, lora, 0.7, 0.0)
names = {key: name for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items() if name + ".alpha" in lora}
worst = moved = 0.0
for key in patched.patches:
    down, up, alpha = (lora[names[key] + end].float() for end in (".lora_down.weight", ".lora_up.weight", ".alpha"))
    before = model.model.state_dict()[key].float().clone()
    patched.patch_weight_to_device(key)
    delta = patched.model.state_dict()[key].float() - before
    wanted = 0.7 * alpha / len(down) * (up.flatten(1) @ down.flatten(1)).reshape(delta.shape)
    worst, moved = max(worst, (delta - wanted).abs().max().item()), max(moved, wanted.abs().max().item())
print(json.dumps({"patches": len(patched.patches), "worst": worst, "moved": moved}))
"""


def patched_weights(checkpoint, lora):
    """ComfyUI's own loader and patcher at strength 0.7. Returns: how many weights, the largest deviation and move."""
    done = subprocess.run([PYTHON, "-c", PATCHED, checkpoint, lora], cwd=COMFYUI, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lora key not loaded" not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_patched_weights_are_the_loras(server):
    file = server.base / "output" / "loras" / "sd.safetensors"  # the template's, trained by the test above
    found = patched_weights(server.base / "models" / "checkpoints" / "tiny.safetensors", file)
    assert found["patches"] == sum(name.endswith(".alpha") for name in load_file(file)) > 0
    assert found["worst"] <= 1e-3 * found["moved"]


SAVED = """
import json, sys
root, checkpoint, lora, temp = sys.argv[1:]
sys.argv = ["x", "--cpu", "--force-fp32"]
sys.path.insert(0, root)
import comfy.options; comfy.options.enable_args_parsing()
import comfy.sd, comfy.utils, comfy_extras.nodes_model_advanced as advanced, folder_paths
from pu_node import model_file
folder_paths.set_temp_directory(temp)
model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(checkpoint)
def saved(model):
    return str(model_file.save(model, clip, vae))
plain = saved(model)
again, time = saved(model), model_file.Path(plain).stat().st_mtime_ns
weights = comfy.utils.load_torch_file(lora, safe_load=True)
patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, weights, 0.7, 0.7)
change = advanced.ModelSamplingDiscrete().patch
found = {"plain": plain, "again": again, "patched": str(model_file.save(patched, patched_clip, vae))}
found["v"] = saved(change(model, "v_prediction", True)[0])
try:
    saved(change(model, "lcm", False)[0])
except ValueError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


def test_a_model_of_the_graph_becomes_a_checkpoint(tmp_path):
    """With its LoRAs in the weights, its sampling told; the same model is the same file."""
    from trainer.models import base_model
    from trainer.models.noise_schedule import declared_by

    checkpoint = write(tmp_path / "tiny.safetensors", TINY)
    unet = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    text = "text_model.encoder.layers.3.mlp.fc1"
    names = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768)}
    names["lora_te_text_model_encoder_layers_3_mlp_fc1"] = (3072, 768)
    generator, lora = torch.Generator().manual_seed(0), {}
    for name, (out, inside) in names.items():
        lora[f"{name}.lora_down.weight"] = torch.randn(4, inside, generator=generator) * 0.1
        lora[f"{name}.lora_up.weight"] = torch.randn(out, 4, generator=generator) * 0.1
        lora[f"{name}.alpha"] = torch.tensor(4.0)
    save_file(lora, tmp_path / "lora.safetensors")
    words = [ROOT, checkpoint, tmp_path / "lora.safetensors", tmp_path / "temp"]
    done = subprocess.run([PYTHON, "-c", SAVED, *words], cwd=COMFYUI, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["again"] == found["plain"]
    assert found["refused"].startswith("model: its sampling was changed to")
    before, after = load_file(found["plain"]), load_file(found["patched"])
    keys = (f"model.diffusion_model.{unet}.weight", f"cond_stage_model.transformer.{text}.weight")
    for key, name in zip(keys, names, strict=True):
        wanted = 0.7 * lora[f"{name}.lora_up.weight"] @ lora[f"{name}.lora_down.weight"]
        assert torch.allclose(after[key].float() - before[key].float(), wanted, atol=1e-3 + 2e-3 * wanted.abs().max())
    assert torch.equal(load_file(found["plain"])[keys[1]].float(), load_file(checkpoint)[keys[1]].float())
    for path in (found["plain"], found["patched"], found["v"]):
        base_model.check(base_model.Base(model_file_path := Path(path), None, "auto"))
        assert model_file_path.parent == tmp_path / "temp" / "pu_unlearn" / "checkpoints"
    assert declared_by(Path(found["plain"]))["prediction_type"] == "epsilon"
    assert (
        declared_by(Path(found["v"])).items()
        >= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}.items()
    )


@pytest.mark.slow
def test_every_module_of_the_full_shape_is_patched(tmp_path):
    """W + strength * alpha / rank * up @ down for all 192; a random LoRA, as big as the weights, on random weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)  # diffusers' defaults are SD 1.5
        layers = dict(unet.named_modules())
    generator, tensors = torch.Generator().manual_seed(0), {}
    for path in lora_target_names(unet):
        name, (out, inside, *kernel) = lora_file.kohya_name(path), layers[path].weight.shape
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, inside, *kernel, generator=generator) * 0.1
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 4, *kernel, generator=generator) * 0.1
        tensors[f"{name}.alpha"] = torch.tensor(6.0)
    save_file(tensors, tmp_path / "lora.safetensors")
    found = patched_weights(write(tmp_path / "full.safetensors", FULL), tmp_path / "lora.safetensors")
    assert found["patches"] == 192
    assert found["worst"] <= 1e-3 * found["moved"]
