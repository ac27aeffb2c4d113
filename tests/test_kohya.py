"""kohya's flags: every one that is accepted sets what it means, every refused one says why."""

from pathlib import Path

import pytest

from trainer import kohya
from trainer.builtin import CONFIG
from trainer.command_line import FLAGS, parse
from trainer.config import TrainConfig
from trainer.errors import UserError

# flag -> (words on the command line, our field, its value)
USED = {
    "pretrained_model_name_or_path": (["runwayml/stable-diffusion-v1-5"], "base", "runwayml/stable-diffusion-v1-5"),
    "output_name": (["my lora"], "name", "my lora"),
    "network_dim": (["8"], "rank", 8),
    "network_alpha": (["4"], "alpha", 4.0),
    "network_weights": ([__file__], "init_lora", Path(__file__)),
    "clip_skip": (["2"], "clip_skip", 2),
    "min_snr_gamma": (["5"], "min_snr_gamma", 5.0),
    "logging_dir": (["logs"], "logging_dir", Path("logs")),
    "learning_rate": (["2e-4"], "lr", 2e-4),
    "unet_lr": (["2e-4"], "lr", 2e-4),
    "max_train_steps": (["77"], "steps", 77),
    "lr_warmup_steps": (["7"], "warmup_steps", 7),
    "optimizer_type": (["AdamW8bit"], "optimizer", "adamw8bit"),
    "use_8bit_adam": ([], "optimizer", "adamw8bit"),
    "use_lion_optimizer": ([], "optimizer", "lion"),
    "mixed_precision": (["no"], "precision", "fp32"),
    "gradient_checkpointing": ([], "checkpointing", "all"),
    "xformers": ([], "attention", "xformers"),
    "sdpa": ([], "attention", "sdpa"),
    "fp8_base": ([], "weights", "fp8"),
    "fp8_base_unet": ([], "weights", "fp8"),
    "v_parameterization": ([], "prediction_type", "v"),
    "caption_dropout_rate": (["0.1"], "caption_dropout", 0.1),
    "flip_aug": ([], "flip", True),
    "save_every_n_steps": (["40"], "save_state_every", 40),
    "sample_every_n_steps": (["50"], "sample_every", 50),
    "config_file": None,  # below
}


@pytest.fixture
def folders(tmp_path):
    for name in ("unlabeled", "sensitive"):
        (tmp_path / name).mkdir()
    return tmp_path


def config_of(folders, *words):
    base = [] if "--pretrained_model_name_or_path" in words else ["--base", str(folders)]
    return parse([*base, "--data", str(folders), *words], CONFIG).config


def test_the_table_holds_exactly_the_accepted_flags():
    assert USED.keys() == kohya.MEANS.keys()
    known = {name.replace("_", "-") for name in TrainConfig.model_fields} | FLAGS.keys()
    assert {field for field, _ in kohya.MEANS.values()} <= known
    assert not kohya.REFUSED.keys() & (kohya.MEANS.keys() | TrainConfig.model_fields.keys())


@pytest.mark.parametrize("flag", [f for f, case in USED.items() if case])
@pytest.mark.parametrize("spelling", ["_", "-"])
def test_accepted(flag, spelling, folders):
    words, field, value = USED[flag]
    assert getattr(config_of(folders, f"--{flag.replace('_', spelling)}", *words), field) == value
    if words and field != "base":
        assert getattr(config_of(folders, f"--{flag}={words[0]}"), field) == value


@pytest.mark.parametrize("flag", kohya.REFUSED)
def test_refused_with_a_reason(flag, folders):
    with pytest.raises(UserError) as error:
        config_of(folders, f"--{flag}", "some", "values", "--steps", "5")
    assert str(error.value) == f"--{flag}: {kohya.REFUSED[flag]}"


def test_values_in_kohyas_words(folders):
    assert config_of(folders, "--resolution", "512,512").resolution == 512
    assert config_of(folders, "--resolution=256,256").resolution == 256
    assert config_of(folders, "--save_precision", "float").save_precision == "fp32"
    with pytest.raises(UserError, match="--resolution"):
        config_of(folders, "--resolution", "512,768")


def test_in_a_config_file(folders):
    file = folders / "kohya.toml"
    file.write_text("max_train_steps = 9\nfp8_base = true\n")
    config = config_of(folders, "--config_file", str(file))
    assert (config.steps, config.weights) == (9, "fp8")
    file.write_text("noise_offset = 0.1\n")
    with pytest.raises(UserError, match="noise_offset: not offered"):
        config_of(folders, "--config", str(file))
