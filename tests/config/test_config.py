"""Options, TOML and presets; every problem in one answer."""

import json
import os
import time
from pathlib import Path

import pytest

from trainer.builtin import CONFIG
from trainer.common.errors import UserError
from trainer.config.arguments import make_parser, parse
from trainer.config.train_config import PRESETS, TrainConfig, schema, to_toml, with_absolute_paths

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
    assert (config.lr, config.steps, config.prior, config.temperature) == (1e-4, 1000, "auto", 1.5)
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


@pytest.mark.parametrize("name", ["../escape", "a/b", "a\\b", "", ".hidden", " x", "-x", "x.", "x ", "x:y", "x\ny"])
def test_name_cannot_leave_the_output_folder(name):
    assert any(p.startswith("--name: must") for p in problems(f"--name={name}"))


@pytest.mark.parametrize("name", ["con", "NUL", "aux", "prn", "com1", "LPT9", "nul.v2", "con .x"])
def test_names_that_windows_keeps(name):
    assert problems("--name", name) == [f"--name: must not be one that Windows keeps for a device, got {name!r}"]


@pytest.mark.parametrize("name", ["猫", "ähre", "_x", "हिन्दी", "console", "com10", "v1.5+a b-c", "猫" * 33, "x" * 100])
def test_names_of_every_script(name, tmp_path):
    assert parse(["--name", name], CONFIG).config.name == name
    (tmp_path / f"{name}-merged.safetensors").touch()


def test_a_name_that_file_systems_do_not_bear():
    assert "at most 100 bytes as UTF-8, this one has 102" in problems("--name", "猫" * 34)[0]
    assert "at most 100 characters" in problems("--name", "x" * 101)[0]


FLOATS = [name for name, field in TrainConfig.model_fields.items() if "float" in str(field.annotation)]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_numbers_are_finite(name, value, tmp_path):
    sentence = f"--{name.replace('_', '-')}: must be a finite number"
    assert problems(f"--{name.replace('_', '-')}={value}")[0].startswith(sentence)
    (tmp_path / "my.toml").write_text(f"{name} = {value}")
    assert problems("--config", str(tmp_path / "my.toml"))[0].startswith(sentence)


def test_resume_without_a_run(tmp_path):
    assert "holds no interrupted run" in problems("--resume", "--name", "x", "--output-dir", str(tmp_path))[0]


def interrupted(config, *, step=1, events=()):
    """A run's folder as a kill leaves it: settings, events and an (empty) state."""
    run = config.output_dir / config.name
    (run / "state").mkdir(parents=True)
    (run / "config.toml").write_text(to_toml(config), encoding="utf-8")
    (run / "state" / f"step{step:08d}.safetensors").touch()
    (run / "events.jsonl").write_text("".join(json.dumps({"event": event}) + "\n" for event in events))
    return ["--resume", "--name", config.name, "--output-dir", str(config.output_dir)]


def test_resume_takes_the_saved_settings_and_refuses_others(folders, tmp_path):
    config = own(folders, "--name", "x", "--output-dir", str(tmp_path), "--rank", "4").config
    arguments = interrupted(config)
    again = parse([*arguments, "--micro-batch", "2"], CONFIG)
    assert again.resume
    assert not again.is_builtin
    assert again.config == config.model_copy(update={"micro_batch": 2})
    found = problems(*arguments, "--rank", "5", "--lr", "0.1")
    assert "--rank: this run was started with 4, not 5" in found[0]
    assert "--lr: this run was started with 0.0001, not 0.1" in found[1]


def test_resume_for_more_steps_or_fewer_but_not_for_less_than_is_done(folders, tmp_path):
    config = own(folders, "--output-dir", str(tmp_path), "--steps", "9").config
    arguments = interrupted(config, step=5)
    free = {"steps": 20, "sample_every": 3, "save_state_every": 2}
    for steps in (5, 20):
        words = [f"--steps={steps}", "--sample-every=3", "--save-state-every=2"]
        wanted = config.model_copy(update={**free, "steps": steps})
        assert parse([*arguments, *words], CONFIG).config == wanted
    assert problems(*arguments, "--steps", "4") == ["--steps: this run has done 5 already, more than 4"]


def test_resume_with_the_prior_that_was_estimated(folders, tmp_path):
    same = ["--output-dir", str(tmp_path), "--prior", "auto", "--base", str(folders / "model"), "--data", str(folders)]
    config = own(folders, *same).config.model_copy(update={"prior": 0.2})
    arguments = interrupted(config)
    assert parse([*arguments, *same], CONFIG).config == config
    assert "--prior: this run was started with 0.2, not 0.3" in problems(*arguments, "--prior", "0.3")[0]


def test_resume_without_a_name_takes_the_newest_that_is_not_done(folders, tmp_path):
    ages = {"done": 1, "newest": 2, "again": 3, "older": 4, "unsaved": 0}  # hours
    events = {"done": ["step", "done"], "again": ["step", "done", "step"]}
    for name, age in ages.items():
        config = own(folders, "--output-dir", str(tmp_path), "--name", name).config
        interrupted(config, step=0 if name == "unsaved" else 1, events=events.get(name, ["step"]))
        at = time.time() - 3600 * age
        for place in ("config.toml", "events.jsonl", "state"):
            os.utime(tmp_path / name / place, (at, at))
    arguments = ["--resume", "--output-dir", str(tmp_path)]
    assert parse(arguments, CONFIG).config.name == "unsaved"  # stopped before its first state
    # U+2028, which JSON leaves as it is, ends no line
    (tmp_path / "unsaved" / "events.jsonl").write_text('{"event": "done", "lora": "a\u2028b"}\n', encoding="utf-8")
    assert parse(arguments, CONFIG).config.name == "newest"
    (tmp_path / "newest" / "events.jsonl").write_text('{"event": "done"}\n')
    assert parse(arguments, CONFIG).config.name == "again"
    assert parse([*arguments, "--name", "done"], CONFIG).config.name == "done"
    for name in ("again", "older"):
        (tmp_path / name / "events.jsonl").write_text('{"event": "done"}\n')
    found = problems(*arguments)
    assert found[0].startswith(f"--resume: {tmp_path} holds no interrupted run")


def test_resume_of_a_run_that_was_moved(folders, tmp_path):
    interrupted(own(folders, "--output-dir", str(tmp_path / "a"), "--name", "x").config)
    (tmp_path / "a" / "x").rename(tmp_path / "y")
    config = parse(["--resume", "--name", "y", "--output-dir", str(tmp_path)], CONFIG).config
    assert (config.name, config.output_dir) == ("y", tmp_path)


def test_schema_is_current_and_exposes_no_paths():
    saved = json.loads((Path(__file__).parents[2] / "trainer" / "schema.json").read_text(encoding="utf-8"))
    assert saved == schema(), "make it again: python -m trainer.config > trainer/schema.json"
    assert {"base", "unlabeled", "sensitive", "data", "output_dir", "device"}.isdisjoint(saved["fields"])
    assert {"objective", "prior", "temperature", "steps", "seed"} <= saved["fields"].keys()


def test_every_field_has_help():
    assert all(field.description for field in TrainConfig.model_fields.values())


def test_what_a_file_sets_can_be_unset(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('min_snr_gamma = 5\nalpha = 4\nkeep_prompts = "a cat"\nprompt = "none"\n')
    plain = parse(["--config", str(file)], CONFIG).config
    assert (plain.min_snr_gamma, plain.alpha, plain.keep_prompts, plain.prompt) == (5, 4, "a cat", "none")
    words = ["--min-snr-gamma", "none", "--alpha", "none", "--keep-prompts", ""]
    unset = parse(["--config", str(file), *words], CONFIG).config
    assert (unset.min_snr_gamma, unset.alpha, unset.keep_prompts, unset.prompt) == (None, None, None, "none")


def test_a_share_may_be_in_per_cent():
    assert parse(["--prior", "20%"], CONFIG).config.prior == 0.2
    assert "--prior: must be less than 1" in problems("--prior", "250%")[0]


def test_saved_paths_mean_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(base="builtin", unlabeled="some/unlabeled", output_dir="out", exclude="x.txt")
    saved = with_absolute_paths(config)
    assert saved.unlabeled == Path.cwd() / "some/unlabeled"
    assert (saved.output_dir, saved.exclude) == (Path.cwd() / "out", Path.cwd() / "x.txt")
    assert (saved.base, saved.sensitive) == ("builtin", None)
    assert with_absolute_paths(config.model_copy(update={"base": "runwayml/sd-1-5"})).base == "runwayml/sd-1-5"
    (Path.cwd() / "model.safetensors").touch()
    named = with_absolute_paths(config.model_copy(update={"base": "model.safetensors"}))
    assert named.base == str(Path.cwd() / "model.safetensors")


@pytest.mark.parametrize(
    ("more", "weight"), [("", 0.2), ("sensitive_weight = 0.7\n", 0.7), ('sensitive_weight = "auto"\n', "auto")]
)
def test_a_run_from_before_the_sensitive_weight_keeps_the_papers(tmp_path, more, weight):
    """Its config.toml has none: resumed, it would go on with another objective."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.toml").write_text(f'base = "builtin"\nprior = 0.2\n{more}')
    found = parse(["--resume", "--name", "x", "--output-dir", str(tmp_path)], CONFIG, needs_images=False).config
    assert found.sensitive_weight == weight
