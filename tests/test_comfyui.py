"""The pack in a real ComfyUI: a checkout named by COMFYUI_PATH (or ~/ComfyUI), run by COMFYUI_PYTHON.

Skipped, and counted as such, where there is none: ComfyUI is not on the package index.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_checkpoint import Shape, write
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", Path.home() / "ComfyUI"))
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
NEEDS = "import aiohttp, torchvision, comfyui_frontend_package"
# as small as ComfyUI still takes it for Stable Diffusion 1.x: two levels of 320 channels, the full CLIP and VAE widths
TINY = Shape((320, 320), (True, False), 1, 768, (128, 256, 512, 512), 1, 12)


def _usable():
    if not (COMFYUI / "main.py").exists():
        return False
    return subprocess.run([PYTHON, "-c", NEEDS], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _usable(), reason="no ComfyUI (COMFYUI_PATH, COMFYUI_PYTHON)")


class Server:
    """ComfyUI on loopback with the pack linked into a base directory of its own."""

    def __init__(self, base):
        self.base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = base / "server.log"
        self.process = None

    def start(self):
        words = ["main.py", "--cpu", "--listen", "127.0.0.1", "--port", self.port, "--disable-auto-launch"]
        words += ["--base-directory", self.base, "--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        self.process = subprocess.Popen(
            [PYTHON, *map(str, words)], cwd=COMFYUI, stdout=self.log.open("a"), stderr=subprocess.STDOUT
        )
        for _ in range(240):
            with contextlib.suppress(OSError):
                self.get("system_stats")
                return
            time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=10) as answer:
            return json.load(answer)

    def post(self, path, value):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}", json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                text = answer.read()
                return json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            return {"refused": error.read().decode()}

    def wait(self, prompt_id, seconds=240):
        """The history entry of a prompt, once it has ended."""
        for _ in range(int(seconds / 0.1)):
            found = self.get(f"history/{prompt_id}").get(prompt_id)
            if found and found["status"]["messages"][-1][0] != "execution_start":
                last = found["status"]["messages"][-1]
                if last[0] in ("execution_success", "execution_error", "execution_interrupted"):
                    return found, last
            time.sleep(0.1)
        raise AssertionError("the prompt did not end")

    def run(self, workflow):
        answer = self.post("prompt", {"prompt": workflow})
        assert "prompt_id" in answer, answer
        return self.wait(answer["prompt_id"])


def workflow(file, **changes):
    """An API workflow with other values wherever an input of that name is a widget."""
    found = json.loads((ROOT / "tests" / "workflows" / f"{file}.json").read_text())
    for node in found.values():
        node["inputs"] |= {k: v for k, v in changes.items() if not isinstance(node["inputs"].get(k, []), list)}
    return found


def demo(**changes):
    return workflow("digits-demo-without-checkpoint", **{"steps": 4, "name": "demo", **changes})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    for folder in ("custom_nodes", "input/unlabeled", "input/sensitive", "models/checkpoints", "output"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / "pu-unlearn").symlink_to(ROOT)
    for kind, seed in (("unlabeled", 0), ("sensitive", 1)):
        for i in range(4):
            pixels = np.random.default_rng([seed, i]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(base / "input" / kind / f"{i}.png")
    write(base / "models" / "checkpoints" / "tiny.safetensors", TINY)
    found = Server(base)
    found.start()
    yield found
    found.stop()
    shutil.rmtree(base, ignore_errors=True)


def images_of(history):
    return [i for output in history["outputs"].values() for i in output.get("images", [])]


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
        is_widget = lambda k: isinstance(k, list) or k in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")  # noqa: E731
        assert [n for n in order if is_widget(kinds[n][0])] == widgets, name
        assert [n for n in order if not is_widget(kinds[n][0])] == [n for n, _ in links], name
        assert info["output"] == [kind for _, kind in outputs], name
        assert all(kinds[n][1].get("tooltip") for n in widgets if name.startswith("PU")), name


def test_templates_are_listed(server):
    assert server.get("workflow_templates")["pu-unlearn"] == sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))


def test_demo_trains_and_comes_from_the_cache_after_a_restart(server):
    history, last = server.run(demo())
    assert last[0] == "execution_success", last
    assert len(images_of(history)) == 2
    lora = server.base / "output" / "loras" / "demo.safetensors"
    made = lora.stat().st_mtime_ns
    assert "demo.safetensors" in server.get("models/loras")
    server.stop()
    server.start()
    started = time.time()
    _, last = server.run(demo())
    assert last[0] == "execution_success"
    assert time.time() - started < 5
    assert lora.stat().st_mtime_ns == made
    _, last = server.run(demo(retrain=True, steps=4))
    assert (server.base / "output" / "loras" / "demo-2.safetensors").exists()


def test_cancel_within_two_seconds(server):
    answer = server.post("prompt", {"prompt": demo(steps=5000, name="long")})
    for _ in range(600):
        events = server.base / "output" / "pu_unlearn" / "long" / "events.jsonl"
        if events.exists() and '"step"' in events.read_text():
            break
        time.sleep(0.1)
    assert trainers(server)
    server.post("interrupt", {})
    started = time.time()
    _, last = server.wait(answer["prompt_id"])
    assert last[0] == "execution_interrupted"
    assert time.time() - started < 2
    assert not trainers(server)


def test_an_error_is_one_sentence_and_the_server_lives(server):
    answer = server.post("prompt", {"prompt": demo(name="bad/../name")})
    assert "must be a plain name, without folders" in answer["refused"]
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


def test_patched_weights_are_the_loras(server, tmp_path):
    """ComfyUI's own patcher: every module, and each weight W + strength * alpha / rank * up @ down."""
    code = """
import sys, json
sys.argv = ["x", "--cpu"]
import comfy.options; comfy.options.enable_args_parsing()
import torch, comfy.sd, comfy.utils
model, clip, *_ = comfy.sd.load_checkpoint_guess_config(CKPT, output_vae=False)
lora = comfy.utils.load_torch_file(LORA, safe_load=True)
patched, _ = comfy.sd.load_lora_for_models(model, clip, lora, 0.7, 0.0)
plain = model.model.state_dict()
out = {}
for key in patched.patches:
    weight = plain[key].float()
    out[key] = (patched.patch_weight_to_device(key) or patched.model.state_dict()[key]).float() - weight
torch.save({"n": len(patched.patches), "keys": list(patched.patches)}, OUT)
torch.save(out, OUT + ".delta")
"""
    checkpoint = server.base / "models" / "checkpoints" / "tiny.safetensors"
    lora = server.base / "output" / "loras" / "sd.safetensors"
    code = code.replace("CKPT", repr(str(checkpoint))).replace("LORA", repr(str(lora)))
    code = code.replace("OUT", repr(str(tmp_path / "out.pt")))
    done = subprocess.run([PYTHON, "-c", code], cwd=COMFYUI, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lora key not loaded" not in done.stdout + done.stderr
    weights = load_file(lora)
    modules = [name.removesuffix(".lora_down.weight") for name in weights if name.endswith(".lora_down.weight")]
    found = torch.load(tmp_path / "out.pt.delta")
    assert len(found) == len(modules) > 0
    wanted = sorted(
        (0.7 * (weights[f"{m}.alpha"] / len(weights[f"{m}.lora_down.weight"]))).item()
        * (weights[f"{m}.lora_up.weight"].flatten(1).float() @ weights[f"{m}.lora_down.weight"].flatten(1).float())
        .norm()
        .item()
        for m in modules
    )
    norms = sorted(delta.norm().item() for delta in found.values())
    assert norms == pytest.approx(wanted, rel=2e-2, abs=1e-3)
