"""A real ComfyUI on loopback for the tests: a checkout named by COMFYUI_PATH (or ~/ComfyUI), run by COMFYUI_PYTHON."""

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
from PIL import Image
from random_checkpoint import Shape, write

ROOT = Path(__file__).parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", Path.home() / "ComfyUI"))
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
NEEDS = "import aiohttp, torchvision, comfyui_frontend_package"
# as small as ComfyUI still takes it for Stable Diffusion 1.x: two levels of 320 channels, the full CLIP and VAE widths
TINY = Shape((320, 320), (True, False), 1, 768, (128, 256, 512, 512), 1, 12)


def _usable():
    if not (COMFYUI / "main.py").exists():
        return False
    return subprocess.run([PYTHON, "-c", NEEDS], capture_output=True).returncode == 0


needs_comfyui = pytest.mark.skipif(not _usable(), reason="no ComfyUI (COMFYUI_PATH, COMFYUI_PYTHON)")


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
