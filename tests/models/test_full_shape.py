"""A whole run on the exact shape of Stable Diffusion 1.5, from a single file, offline, on the CPU."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from random_checkpoint import FULL, write
from safetensors import safe_open


@pytest.mark.slow
def test_from_file_to_lora(trainer, tmp_path):
    home = tmp_path / "Zuhause mit Ümläut"
    for kind, seed in (("unlabeled", 0), ("sensitive", 1)):
        (home / kind).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng([seed, i]).integers(0, 256, (64, 64 + 8 * i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / kind / f"{i}.png")
    base = write(home / "v1-5.safetensors", FULL)
    words = ["--base", base, "--data", home, "--prompt", "a photo", "--resolution", 64, "--device", "cpu"]
    words += ["--steps", 2, "--batch-unlabeled", 2, "--batch-sensitive", 1, "--calibration-samples", 1]
    words += ["--precision", "bf16", "--images", 0, "--output-dir", home / "out", "--name", "meine LoRA"]
    done = trainer(*words)
    assert done.returncode == 0, done.stderr
    lora = home / "out" / "meine LoRA.safetensors"
    with safe_open(lora, "pt") as file:
        names = list(file.keys())
        metadata = file.metadata()
    assert len([n for n in names if n.endswith("lora_down.weight")]) == 192
    assert len(names) == 3 * 192
    assert metadata["ss_new_sd_model_hash"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert _loads_in_diffusers(base, lora) == 192


def _loads_in_diffusers(base, lora):
    """How many modules of the U-Net get the LoRA from diffusers' own loader."""
    from trainer.models import base_model, pipeline

    unet = base_model.load_unet(base_model.Base(base), torch.bfloat16)
    pipe = pipeline.load_pipeline(base_model.Base(base), unet)
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    return sum(1 for module in pipe.unet.modules() if getattr(module, "lora_A", None))
