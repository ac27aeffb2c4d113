"""docs/method.py, the method on one page, trains the same LoRA as the product."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

tomllib = pytest.importorskip("tomllib")
PAGE = Path(__file__).parents[1] / "docs" / "method.py"


def load_page():
    spec = importlib.util.spec_from_file_location("method", PAGE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kohya_name(name):
    """`down_blocks.0….to_q.lora_A.default.weight` -> `lora_unet_down_blocks_0_…_to_q.lora_down.weight`."""
    path, letter = name.removesuffix(".default.weight").rsplit(".lora_", 1)
    return f"lora_unet_{path.replace('.', '_')}.lora_{ {'A': 'down', 'B': 'up'}[letter] }.weight"


def test_the_page_is_short_and_stands_alone():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert [line for line in text.splitlines() if "trainer" in line and "import" in line] == [
        "from trainer.builtin import MODEL, digits"
    ]


@pytest.mark.long
def test_the_products_lora_is_the_pages(trainer, tmp_path):
    words = ("--steps", 20, "--precision", "fp32", "--save-precision", "fp32", "--images", 0, "--rate-images", 0)
    done = trainer("--lowvram", "--device", "cpu", *words, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    prior = tomllib.loads((tmp_path / "pu-digits" / "config.toml").read_text(encoding="utf-8"))["prior"]
    found = load_file(tmp_path / "pu-digits.safetensors")
    expected = {kohya_name(name): value for name, value in load_page().train(prior).items()}
    assert {name for name in found if not name.endswith(".alpha")} == set(expected)
    for part in ("lora_down", "lora_up"):
        both = [(found[n].flatten(), e.flatten()) for n, e in expected.items() if part in n]
        mine, pages = (torch.cat(values) for values in zip(*both, strict=True))
        assert (mine - pages).norm() / pages.norm() <= 1e-5  # measured: 1e-6
