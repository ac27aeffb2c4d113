"""The page in headless Chromium on A1111's gradio, Forge's and the current one, each in an environment of its own.

PU_GRADIO_ENVIRONMENTS=FOLDER keeps the environments and uses them again, PU_SCREENSHOTS=FOLDER keeps the pictures;
those in the docs were made so. Chromium and the package playwright are needed; skipped, and counted as such, without.
"""

import contextlib
import io
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
import random_checkpoint
from PIL import Image

from pu_node import drawing
from trainer.models import lora_file

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

GRADIOS = {
    "3.41": "gradio==3.41.2 fastapi==0.94.0 pydantic==1.10.15 httpx==0.24.1 huggingface_hub<1 pillow==9.5.0 numpy<2",
    "4.40": "gradio==4.40.0 fastapi==0.104.1 pydantic==2.8.2 huggingface_hub<1 pillow==9.5.0 numpy<2",
    "current": "gradio",
}
HOSTS = {"3.41": "a1111", "4.40": "forge", "current": "alone"}
ALONE = "import sys; from trainer.ui import main; sys.exit(main(sys.argv[1:]))"  # the rest needs a newer pydantic
STEPS = 80  # of the run that is cancelled


@pytest.fixture(scope="session")
def pythons(tmp_path_factory):
    """A function: gradio -> the Python of an environment that has it."""
    kept = os.environ.get("PU_GRADIO_ENVIRONMENTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("gradios")

    def python(version):
        found = folder / version / "bin" / "python"
        if not found.exists():
            subprocess.run([sys.executable, "-m", "venv", folder / version], check=True)
            pip = [found, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*pip, *GRADIOS[version].split()], check=True)
        return found

    return python


@contextlib.contextmanager
def served(command, cwd):
    """The address of a server that is started with these words, and stopped again. PORT in them is replaced."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PU_UNLEARN_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    words = [str(port) if word == "PORT" else str(word) for word in command]
    log = cwd / "server.log"
    with open(log, "w") as file:
        process = subprocess.Popen(words, cwd=cwd, env=environment, stdout=file, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=5).close()
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.25)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def command_for(python, host, data):
    if host == "alone":
        folders = ["--output-dir", data / "loras", "--checkpoint-dir", data / "models" / "Stable-diffusion"]
        return [python, "-m", "trainer", "ui", "--port", "PORT", "--allow-dir", data, *folders]
    return [python, "-W", "ignore", Path(__file__).with_name("webui_stub.py"), host, data, "PORT"]


@pytest.fixture
def data(tmp_path, digit_folders):
    """A webui's data folder with a checkpoint, a file that only has a checkpoint's name, and two folders of images."""
    for folder in ("models/Lora", "models/Stable-diffusion", "images/few"):
        (tmp_path / folder).mkdir(parents=True)
    random_checkpoint.write(tmp_path / "models/Stable-diffusion/own.safetensors", random_checkpoint.SMALL)
    for kind in ("unlabeled", "sensitive"):
        shutil.copytree(digit_folders[kind], tmp_path / "images" / kind)
    (tmp_path / "models/Stable-diffusion/model.safetensors").write_bytes(b"not really")
    return tmp_path


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield found
        found.close()


class Driver:
    """What a user does on the page."""

    def __init__(self, page, address, host, shots):
        self.page, self.host, self.shots = page, host, shots
        page.goto(address, wait_until="domcontentloaded")
        self.open_tab()

    def open_tab(self):
        if self.host != "alone":
            self.page.locator("button:visible", has_text="PU Unlearn").first.click(timeout=60000)
        self.part("start").wait_for(timeout=60000)
        self.page.wait_for_timeout(1000)

    def part(self, name):
        return self.page.locator(f"#pu_unlearn_{name}").last  # gradio 3 gives a text's id to its frame, too

    def fill(self, name, value):
        self.part(name).locator("input, textarea").first.fill(str(value))

    def choose(self, name, value):
        self.part(name).locator("input").first.click()
        self.page.locator("li:visible", has_text=value).first.click()
        self.page.wait_for_timeout(1000)

    def click(self, name):
        self.part(name).click()

    def text(self, name):
        part = self.part(name)
        return part.inner_text() if part.count() and part.is_visible() else ""

    def wait(self, name, words, seconds=400):
        for _ in range(int(seconds / 0.2)):
            if words in self.text(name):
                return self.text(name)
            self.page.wait_for_timeout(200)
        raise AssertionError(f"{name} never said {words!r} but {self.text(name)!r}")

    def reach(self):
        """How far right the drawn curve goes, in pixels."""
        picture = Image.open(io.BytesIO(self.part("curve").locator("img").first.screenshot())).convert("RGB")
        is_line = np.abs(np.asarray(picture).astype(int) - drawing.UNLABELED).max(-1) < 60
        below_title = is_line[is_line.shape[0] // 5 :]
        return int(below_title.any(0).nonzero()[0].max(initial=0))

    def shoot(self, name):
        self.page.wait_for_timeout(700)
        self.page.screenshot(path=self.shots / f"{name}.png", full_page=True)


@pytest.mark.parametrize("version", GRADIOS)
def test_a_user_trains_cancels_and_trains_again(version, pythons, data, browser, tmp_path):
    host = HOSTS[version]
    shots = Path(os.environ.get("PU_SCREENSHOTS", tmp_path))
    page = browser.new_page(viewport={"width": 1360, "height": 1000}, accept_downloads=True)
    with served(command_for(pythons(version), host, data), data) as address, contextlib.closing(page):
        user = Driver(page, address, host, shots)
        refuse_bad_input(user, data, f"{version}-bad-input")
        user.fill("name", "seen")
        user.fill("steps", STEPS)
        user.click("plan")
        assert "MiB" in user.wait("planned", "peak")
        user.click("start")
        user.wait("status", f"of {STEPS}")
        user.wait("status", "step 1")
        first = user.reach()
        user.part("sample").locator("img").first.wait_for(timeout=300000)
        user.shoot(f"{version}-training")
        assert user.reach() > first + 20
        user.page.reload(wait_until="domcontentloaded")  # the training goes on, and the page finds it again
        user.open_tab()
        user.wait("status", f"of {STEPS}")
        user.click("cancel")
        assert "Stopped at step" in user.wait("status", "cancelled")
        lists = data / ("loras" if host == "alone" else "models/Lora")
        assert not (lists / "seen.json").exists()
        user.fill("name", "seen")
        user.fill("steps", 20)
        user.click("start")
        assert "<lora:seen-2:1>" in user.wait("status", "done")
        user.part("sample").locator("img").first.wait_for(timeout=10000)
        user.shoot(f"{version}-done")
        with page.expect_download() as download:
            user.part("files").locator("a:visible").first.click()
        found = Path(download.value.path()).read_bytes()
        assert found == (lists / "seen-2.safetensors").read_bytes()
        train_an_own_checkpoint(user, f"{version}-own")
    assert lora_file.read_metadata(lists / "seen-2.safetensors")["ss_output_name"] == "seen-2"
    with Image.open(lists / "seen-2.preview.png") as preview:
        assert max(preview.size) <= 512
    assert json.loads((lists / "seen-2.json").read_text())["preferred weight"] == 1.0
    unload = {"a1111": ["unload_model_weights locked"], "forge": ["unload_all_models locked"]}.get(host)
    load = ["send_model_to_device locked"] if host == "a1111" else []
    if unload:
        assert (data / "asked.txt").read_text().splitlines() == [*unload, *load, "refresh locked"] * 6  # 3 plans
        made = [f"{name}{suffix}" for name in ("own", "seen-2") for suffix in (".json", ".preview.png", ".safetensors")]
        assert sorted(p.name for p in lists.rglob("*")) == made


def refuse_bad_input(user, data, shot):
    """Beside its field, in a sentence that names it; nothing starts."""
    user.choose("checkpoint", "model.safetensors")
    user.fill("unlabeled", "/etc")
    user.fill("sensitive", "images/../../..")
    user.fill("prior", 2)
    user.fill("name", "../../escape")
    user.click("start")
    assert user.wait("unlabeled_problem", "unlabeled: no such folder below")
    assert "sensitive: no such folder below" in user.text("sensitive_problem")
    assert "prior: must be less than 1" in user.text("prior_problem")
    assert "name: must be letters" in user.text("name_problem")
    below = user.part("prior_problem").bounding_box()["y"] - user.part("prior").bounding_box()["y"]
    assert 0 < below < 160
    user.shoot(shot)
    user.fill("unlabeled", "images")
    user.fill("sensitive", str(data / "images" / "few"))
    user.fill("prior", 0.2)
    user.fill("name", "refused")
    user.fill("prompt", "a photo")
    user.click("plan")
    assert "no images" in user.wait("problem", "images")  # the trainer's own words, without its options
    user.choose("checkpoint", "digits demo")
    assert "No training yet" in user.text("status")


def train_an_own_checkpoint(user, shot):
    """A checkpoint from the list, two folders below the root; the plan also says what they hold."""
    user.choose("checkpoint", "own.safetensors")
    user.fill("unlabeled", "images/unlabeled")
    user.fill("sensitive", "images/sensitive")
    for name, value in {"prompt": "a digit", "name": "own", "steps": 3, "rank": 2}.items():
        user.fill(name, value)
    user.page.locator("button:visible, .label-wrap:visible", has_text="More settings").first.click()
    user.fill("resolution", 64)
    user.click("plan")
    assert "unlabeled" in user.wait("planned", "peak")
    user.click("start")
    assert "<lora:own:1>" in user.wait("status", "own: done")
    user.shoot(shot)


def answer(address, path, **headers):
    request = urllib.request.Request(address + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("version", GRADIOS)
def test_the_page_alone_serves_no_files_and_no_other_pages(version, pythons, data):
    """Files beside it, in the working directory and among the runs; requests that other web pages send."""
    secret = data / "loras" / "other" / "state.txt"
    secret.parent.mkdir(parents=True)
    secret.write_text("a secret")
    (data / "here.txt").write_text("a secret")
    command = [pythons(version), "-c", ALONE, "--port", "PORT", "--output-dir", "loras", "--allow-dir", "."]
    with served(command, data) as address:
        assert answer(address, "/")[0] == 200
        for path in (secret, data / "here.txt", ROOT / "README.md", "here.txt"):
            for route in ("/file=", "/gradio_api/file=", "/file/"):
                code, body = answer(address, f"{route}{path}")
                assert code != 200 or (b"secret" not in body and b"# PU Unlearn" not in body), (route, path)
        assert answer(address, "/config", Origin="https://elsewhere.example")[0] == 403
        assert answer(address, "/config", Host="elsewhere.example")[0] == 403
        assert answer(address, "/config", Origin=address)[0] == 200
    listening = [word for word in (data / "server.log").read_text().split() if "://" in word]
    assert listening == [address]
