"""The base model of a LoRA, where --base does not name one."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from trainer.common.errors import UserError
from trainer.config.train_config import TrainConfig, to_toml
from trainer.generation.lora_base import with_base_of_lora


def lora(folder, *, run_base=None, **metadata):
    path = folder / "mine.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, path, metadata={"ss_network_dim": "4", **metadata})
    if run_base:
        (folder / "mine").mkdir()
        (folder / "mine" / "config.toml").write_text(to_toml(TrainConfig(base=str(run_base))), encoding="utf-8")
    return path


def ours(base):
    return {"pu_config": json.dumps({"base": base}), "ss_sd_model_name": base}


def test_the_run_beside_the_lora_knows_the_path(tmp_path):
    base = tmp_path / "model.safetensors"
    base.touch()
    path = lora(tmp_path, run_base=base, **ours(base.name))
    words, said = with_base_of_lora(["--prompt", "x", f"--lora={path}"])
    assert words == ["--prompt", "x", f"--lora={path}", f"--base={base}"]
    assert said == f"base model: {base}, which mine.safetensors was trained on"


def test_a_hub_id_in_the_metadata_is_used(tmp_path):
    path = lora(tmp_path, ss_sd_model_name="someone/finetune")
    assert with_base_of_lora(["--lora", str(path)])[0][-1] == "--base=someone/finetune"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (ours("v1-5.safetensors"), "was trained on v1-5.safetensors; name that model's file, folder or hub id"),
        ({"ss_sd_model_name": "anime.ckpt"}, "was trained on anime.ckpt"),
        ({}, "does not say which model it was trained on"),
        ({"pu_config": "torn", "ss_sd_model_name": "v1-5.safetensors"}, "was trained on v1-5.safetensors"),
    ],
)
def test_a_model_that_is_not_found_is_named(metadata, said, tmp_path, trainer):
    path = lora(tmp_path, run_base=tmp_path / "moved.safetensors", **metadata)
    with pytest.raises(UserError, match=f"--base: .*{re.escape(said)}"):
        with_base_of_lora(["--lora", str(path)])
    for command in ("sample", "evaluate"):
        done = trainer(command, "--lora", path, "--prompt", "x")
        assert (done.returncode, said in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "words", [["--lora"], ["--lora", "{}", "--base", "x"], ["--lora", "nowhere"], ["--prompt", "x"]]
)
def test_other_command_lines_stay_as_they_are(words, tmp_path):
    words = [word.format(lora(tmp_path, **ours("v1-5.safetensors"))) for word in words]
    assert with_base_of_lora(words) == (words, None)


def test_the_builtin_model_is_the_default(tmp_path):
    words = ["--lora", str(lora(tmp_path, **ours("builtin")))]
    assert with_base_of_lora(words) == (words, None)
    (tmp_path / "mine.safetensors").write_bytes(b"damaged")
    assert with_base_of_lora(words) == (words, None)
