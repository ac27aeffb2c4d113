"""Options, TOML and presets; every problem in one answer."""

import json
from pathlib import Path

import pytest

from trainer.builtin import CONFIG
from trainer.command_line import make_parser, parse
from trainer.config import PRESETS, TrainConfig, schema, to_toml
from trainer.errors import UserError

NAMES = """base unlabeled sensitive data prompt sensitive-prompt resolution objective prior beta temperature
temperature-mode sensitive-prompt-share steps batch-unlabeled batch-sensitive micro-batch device lr rank alpha optimizer
precision seed name output-dir resume config dry-run events lowvram"""


@pytest.fixture
def folders(tmp_path):
    for name in ("unlabeled", "sensitive", "model"):
        (tmp_path / name).mkdir()
    return tmp_path


def own(folders, *more):
    return parse(["--base", str(folders / "model"), "--data", str(folders), *more], CONFIG)


def problems(*argv):
    with pytest.raises(UserError) as error:
        parse(argv, CONFIG)
    return str(error.value).splitlines()


def test_permanent_names_exist():
    spellings = {s for action in make_parser()._actions for s in action.option_strings}
    assert {f"--{name}" for name in NAMES.split()} <= spellings


def test_defaults_for_a_real_model(folders):
    config = own(folders).config
    assert (config.batch_unlabeled, config.batch_sensitive, config.rank, config.effective_alpha) == (16, 8, 16, 16.0)
    assert (config.lr, config.steps, config.prior, config.temperature) == (1e-4, 1000, "auto", 2.0)
    assert (config.temperature_mode, config.save_precision) == ("per-timestep", "fp16")


def test_nothing_named_means_the_builtin_default():
    assert parse([], CONFIG).is_builtin
    assert parse([], CONFIG).config.resolution == 64
    assert parse(["--base", "builtin"], CONFIG).is_builtin


def test_all_problems_come_together(tmp_path):
    found = problems(
        "--priorr", "0.3", "--steps", "0", "--prior", "2", "--unlabeled", str(tmp_path / "none"), "--micro-batch", "x"
    )
    text = "\n".join(found)
    assert "--priorr: no such option, did you mean --prior?" in text
    assert "0.3: unexpected" not in text
    assert "--steps: must be greater than or equal to 1, got '0'" in text
    assert "--prior: must be less than 1 or must be 'auto', got '2'" in text
    assert "--micro-batch" in text


def test_contradictions_come_together(tmp_path):
    text = "\n".join(problems("--unlabeled", str(tmp_path / "none"), "--base", str(tmp_path / "no-model")))
    assert f"--unlabeled: no folder {tmp_path / 'none'}" in text
    assert "--sensitive: name the folder of sensitive images" in text
    assert f"--base: {tmp_path / 'no-model'} does not exist" in text


def test_folders_without_a_model(folders):
    assert any("--base: name the model" in p for p in problems("--data", str(folders)))


def test_unsupervised_needs_no_sensitive_folder(folders):
    base, unlabeled = str(folders / "model"), str(folders / "unlabeled")
    assert parse(["--base", base, "--unlabeled", unlabeled, "--objective", "unsupervised"], CONFIG)


def test_both_spellings_and_kohyas(folders):
    config = own(
        folders, "--max_train_steps", "7", "--learning_rate=1e-3", "--network_dim", "4", "--beta", "0.3"
    ).config
    assert (config.steps, config.lr, config.rank, config.prior) == (7, 1e-3, 4, 0.3)
    assert own(folders, "--batch_unlabeled", "3").config.batch_unlabeled == 3


def test_missing_value():
    assert "--steps: expected one argument" in problems("--steps")[0]


def test_lowvram_expands_to_fields_and_explicit_options_win(folders):
    file = folders / "other.toml"
    file.write_text("vram_budget = 9\nmicro_batch = 3\ncheckpointing = 1\noffload = 1\nweights = 'fp32'\n")
    for preset, values in PRESETS.items():
        for field, value in values.items():
            assert getattr(own(folders, "--config", str(file)).config, field) != value
            assert getattr(own(folders, "--config", str(file), f"--{preset}").config, field) == value
    assert own(folders, "--lowvram", "--micro-batch", "2").config.micro_batch == 2


def test_toml_layers(folders, tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('rank = 8\nlearning_rate = 1e-3\nprompt = "a „cat“"\n', encoding="utf-8")
    config = own(folders, "--config", str(file), "--rank", "2").config
    assert (config.rank, config.lr, config.prompt) == (2, 1e-3, "a „cat“")
    file.write_text("rnak = 8\nsteps = 0\n")
    text = "\n".join(problems("--config", str(file)))
    assert "no setting named 'rnak', did you mean rank?" in text
    assert "--steps" in text


def test_unreadable_toml(tmp_path):
    assert "cannot read" in problems("--config", str(tmp_path / "none.toml"))[0]
    (tmp_path / "bad.toml").write_text("a = = 1")
    assert "cannot read" in problems("--config", str(tmp_path / "bad.toml"))[0]


def test_saved_config_reads_back(folders, tmp_path):
    config = own(folders, "--prompt", 'a "quoted" \\ line\twith ü', "--alpha", "3.5", "--flip").config
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert parse(["--config", str(tmp_path / "config.toml")], CONFIG).config == config


@pytest.mark.parametrize("name", ["../escape", "a/b", "a\\b", "", ".hidden"])
def test_name_cannot_leave_the_output_folder(name):
    assert any(p.startswith("--name") for p in problems("--name", name))


def test_resume_without_a_run(tmp_path):
    assert "holds no interrupted run" in problems("--resume", "--name", "x", "--output-dir", str(tmp_path))[0]


def test_resume_takes_the_saved_settings_and_refuses_others(folders, tmp_path):
    config = own(folders, "--name", "x", "--output-dir", str(tmp_path), "--rank", "4").config
    (tmp_path / "x" / "state").mkdir(parents=True)
    (tmp_path / "x" / "config.toml").write_text(to_toml(config), encoding="utf-8")
    (tmp_path / "x" / "state" / "step00000001.safetensors").touch()
    arguments = ["--resume", "--name", "x", "--output-dir", str(tmp_path)]
    again = parse([*arguments, "--micro-batch", "2"], CONFIG)
    assert again.resume
    assert not again.is_builtin
    assert again.config == config.model_copy(update={"micro_batch": 2})
    assert "--rank: this run was started with 4, not 5" in problems(*arguments, "--rank", "5")[0]


def test_schema_is_current_and_exposes_no_paths():
    saved = json.loads((Path(__file__).parents[1] / "trainer" / "schema.json").read_text(encoding="utf-8"))
    assert saved == schema(), "make it again: python -m trainer.config > trainer/schema.json"
    assert {"base", "unlabeled", "sensitive", "data", "output_dir", "device"}.isdisjoint(saved["fields"])
    assert {"objective", "prior", "temperature", "steps", "seed"} <= saved["fields"].keys()


def test_every_field_has_help():
    assert all(field.description for field in TrainConfig.model_fields.values())
