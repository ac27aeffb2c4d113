"""--settings-from: what a LoRA's metadata tells, and what it does not."""

import json

import pytest
import safetensors.torch
import torch

from trainer.builtin import BUILTIN, CONFIG
from trainer.common.errors import UserError
from trainer.config.arguments import parse

TOLD = {"rank": 4, "prior": 0.25, "temperature": 3.0, "base": "org/model", "prompt": "a photo of a cat", "vae": None}


@pytest.fixture
def lora(tmp_path):
    def write(settings, key="pu_config"):
        text = settings if isinstance(settings, str) else json.dumps(settings)
        safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={key: text})
        return str(tmp_path / "x.safetensors")

    return write


def read(lora, *more):
    return parse(["--settings-from", lora, *more], CONFIG, needs_images=False).config


def test_settings_are_taken_and_the_command_line_wins(lora, tmp_path):
    found = read(lora(TOLD), "--rank", "8")
    assert (found.rank, found.prior, found.temperature) == (8, 0.25, 3.0)
    assert (found.base, found.prompt, found.steps) == ("org/model", "a photo of a cat", 1000)
    (tmp_path / "c.toml").write_text("temperature = 5.0\nrank = 16")
    found = read(lora(TOLD), "--config", str(tmp_path / "c.toml"))
    assert (found.rank, found.prior, found.temperature) == (16, 0.25, 5.0)


def test_paths_name_and_device_stay_with_the_run_that_had_them(lora):
    """A path in metadata is its last part at most: it would name another file, or none."""
    own = {"base": "model.safetensors", "unlabeled": "photos", "output_dir": "out", "name": "theirs", "device": "mps"}
    found = read(lora({**TOLD, **own}), "--base", BUILTIN)
    assert (found.base, found.unlabeled, found.name, found.device) == (BUILTIN, None, "pu-digits", "auto")
    assert str(found.output_dir) == "output"


def test_what_is_shown_to_others_is_not_taken_over(lora):
    """Somebody else's choice must neither open this run's metadata nor send its numbers anywhere."""
    found = read(lora({**TOLD, "metadata": "full", "log_with": "wandb"}))
    assert (found.metadata, found.log_with) == ("safe", None)


def test_settings_of_a_builtin_run_make_the_builtin_run_again(lora):
    found = parse(["--settings-from", lora({**TOLD, "base": BUILTIN})], CONFIG)
    assert found.is_builtin
    assert found.config.temperature == 3.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**TOLD, "rnak": 4}, "no setting named 'rnak', did you mean rank?"),
        ({**TOLD, "rank": "many"}, "--rank: must be a valid integer"),
        ("[1]", "cannot be read (pu_config is no table)"),
        ("{", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(settings, said, lora):
    with pytest.raises(UserError) as error:
        read(lora(settings))
    assert said in str(error.value)


@pytest.mark.parametrize("data", [b"", b"x" * 50, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{}"])
def test_a_file_without_settings_is_refused_in_a_sentence(data, lora, tmp_path):
    (tmp_path / "y.safetensors").write_bytes(data)
    for path in (lora("1", key="ss_network_dim"), str(tmp_path / "y.safetensors"), str(tmp_path / "none")):
        with pytest.raises(UserError, match=r"--settings-from: .* (tells no settings|cannot be read)"):
            read(path)
