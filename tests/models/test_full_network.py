"""--network full: the whole U-Net learns and is saved as a model of its own."""

import pytest
import torch
from random_checkpoint import SMALL, write
from safetensors.torch import load_file

from trainer.builtin import MODEL
from trainer.memory.estimator import Shape, predict
from trainer.memory.memory_plan import MemoryPlan
from trainer.models import base_model
from trainer.models.networks import train_whole

QUICK = (
    "--network",
    "full",
    "--images",
    "4",
    "--rate-images",
    "0",
    "--sample-steps",
    "2",
    "--calibration-samples",
    "1",
)
QUICK += ("--batch-unlabeled", "2", "--batch-sensitive", "2", "--lr", "1e-3", "--save-precision", "fp32")


@pytest.mark.long
def test_every_weight_of_the_unet_learns_and_nothing_else(trainer, digit_folders, tmp_path):
    folders = ("--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"])
    words = ("--base", "builtin", "--resolution", 64, "--prompt", "a digit", *folders, "--output-dir", tmp_path, *QUICK)
    done = trainer(*words, "--steps", 2, "--name", "whole")
    assert done.returncode == 0, done.stderr
    assert f"model: {tmp_path / 'whole-model'}" in done.stdout
    found = base_model.Base(tmp_path / "whole-model")
    base_model.check(found)
    before = load_file(MODEL / "unet" / "diffusion_pytorch_model.safetensors")
    after = load_file(found.path / "unet" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name].float(), after[name])}
    assert len(moved) > 0.95 * len(before)  # Adam moves every weight that has a gradient at all
    vaes = [load_file(base / "vae" / "diffusion_pytorch_model.safetensors") for base in (MODEL, found.path)]
    assert all(torch.equal(vaes[0][name].float(), vaes[1][name]) for name in vaes[0])
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "The whole U-Net" in page
    assert "--unlearned" in page
    compared = ("evaluate", "--unlearned", found.path, "--n", 4, "--steps", 2, "--out", tmp_path / "e")
    done = trainer(*compared, "--retain-prompts", "a photo of the digit two")
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_resumed_it_is_the_same_model(trainer, digit_folders, tmp_path):
    folders = ("--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"])
    words = ("--base", "builtin", "--resolution", 64, "--prompt", "a digit", *folders, "--output-dir", tmp_path, *QUICK)
    assert trainer(*words, "--steps", 2, "--name", "a", "--save-state-every", 1, "--keep-states", 2).returncode == 0
    whole = load_file(tmp_path / "a-model" / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "a" / "state" / "step00000002.safetensors").unlink()
    assert trainer("--resume", "--name", "a", "--output-dir", tmp_path).returncode == 0
    again = load_file(tmp_path / "a-model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_file_becomes_a_file(trainer, digit_folders, tmp_path):
    base = write(tmp_path / "base.safetensors", SMALL, torch.float16)
    folders = ("--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"])
    words = (
        "--base",
        base,
        "--resolution",
        64,
        "--prompt",
        "a digit",
        *folders,
        "--output-dir",
        tmp_path / "out",
        *QUICK,
    )
    done = trainer(*words, "--steps", 1, "--name", "whole", "--images", 0)
    assert done.returncode == 0, done.stderr
    before, after = load_file(base), load_file(tmp_path / "out" / "whole.safetensors")
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {k: (v.shape, v.dtype) for k, v in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.diffusion_model.") for name in changed)
    base_model.check(base_model.Base(tmp_path / "out" / "whole.safetensors"))


def test_the_plan_counts_every_weight():
    config = base_model.part_config(base_model.Base(MODEL), "unet")
    found = predict(Shape(config, 16, "adamw", 64, 64, "full"), MemoryPlan("fp32", "fp32"))
    unet = base_model.load_unet(base_model.Base(MODEL), torch.float32)
    trained = sum(p.numel() for p in train_whole(unet).parameters)
    assert found.weights == 0
    assert found.lora * 2**20 == pytest.approx(trained * (4 + 4 + 8), rel=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--weights", "fp8"), "--weights: belongs to a LoRA"),
        (("--offload", "1"), "--offload: belongs to a LoRA"),
        (("--save-merged", "folder"), "--save-merged: belongs to a LoRA"),
        (("--init-lora", "README.md"), "--init-lora: belongs to a LoRA"),
    ],
)
def test_what_belongs_to_a_lora_is_refused(words, said, trainer):
    done = trainer("--network", "full", *words)
    assert done.returncode == 2
    assert said in done.stderr
