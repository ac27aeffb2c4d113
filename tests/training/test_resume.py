"""What is kept when a run breaks off, and what a resumed one must share with it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from test_run import own

from trainer.builtin import MODEL
from trainer.common.files import replacing
from trainer.config.train_config import TrainConfig
from trainer.data.folders import Folders, Sample
from trainer.data.images import PLAIN
from trainer.data.latent_cache import Encoded, Store
from trainer.memory import planner
from trainer.memory.estimator import Estimate
from trainer.models import lora_file
from trainer.models.base_model import Base
from trainer.objective import temperature
from trainer.reporting.run_dir import RunDir
from trainer.training import resume, training_loop

ROOT = Path(__file__).parents[2]


def lora(folder):
    return safetensors.torch.load_file(folder / "pu-lora.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture
def broken(trainer, digit_folders, tmp_path, monkeypatch):
    """A run that memory ran out for in its fourth step, with a state of its third."""
    genuine = training_loop.TrainingLoop._losses

    def losses(self, *arguments):
        if self.progress.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return genuine(self, *arguments)

    monkeypatch.setattr(planner, "predict", lambda shape, found: Estimate(0, 0, 1))  # its advice is tested below
    with monkeypatch.context() as patch:
        patch.setattr(training_loop.TrainingLoop, "_losses", losses)
        done = trainer(*own(digit_folders, "--output-dir", tmp_path, "--save-state-every", 5))
    assert done.returncode == 3, done.stderr
    return tmp_path


def test_out_of_memory_loses_nothing(trainer, digit_folders, broken, tmp_path):
    assert RunDir(broken, "pu-lora").load_state()["progress"]["step"] == 3
    assert (broken / "pu-lora.safetensors").exists()
    done = trainer("--resume", "--name", "pu-lora", "--output-dir", broken)
    assert done.returncode == 0, done.stderr
    whole = trainer(*own(digit_folders, "--output-dir", tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert same(lora(broken), lora(tmp_path / "whole"))


@pytest.mark.parametrize("where", ["measuring the base model", "the first step"])
def test_a_start_without_enough_memory_is_tried_again_with_less(trainer, digit_folders, tmp_path, monkeypatch, where):
    """The whole of the next saving is tried and said, and the LoRA is that of a run that began so."""
    seen = []

    def starve(genuine):
        def call(self, *arguments):
            seen.append(where)
            if len(seen) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return genuine(self, *arguments)

        return call

    name = "prepare" if where == "measuring the base model" else "_accumulate"
    with monkeypatch.context() as patch:
        patch.setattr(training_loop.TrainingLoop, name, starve(getattr(training_loop.TrainingLoop, name)))
        done = trainer(*own(digit_folders, "--output-dir", tmp_path, "--prior", 0.2))
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "out of memory before the first step; trying again with micro-batch 1, weights fp32" in said
    train = [e for e in RunDir(tmp_path, "pu-lora").events() if e.get("name") == "train"][-1]
    assert (train["micro_batch"], train["checkpointing"]) == (1, 9)
    settings = ["--micro-batch", 1, "--checkpointing", "all", "--prior", 0.2]
    other = trainer(*own(digit_folders, "--output-dir", tmp_path / "other", *settings))
    assert other.returncode == 0, other.stderr
    assert same(lora(tmp_path), lora(tmp_path / "other"))


@pytest.mark.long
def test_the_number_format_that_a_retry_chose_is_that_of_the_state(trainer, digit_folders, tmp_path, monkeypatch):
    genuine, calls = training_loop.TrainingLoop.prepare, []

    def prepare(self):
        calls.append(1)
        if len(calls) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return genuine(self)

    monkeypatch.setattr(training_loop.TrainingLoop, "prepare", prepare)
    done = trainer(*own(digit_folders, "--output-dir", tmp_path, "--prior", 0.2))
    assert done.returncode == 0, done.stderr
    assert RunDir(tmp_path, "pu-lora").load_state()["run"]["formats"]["weights"] == "fp8"


@pytest.mark.long
def test_a_resumed_run_that_is_tried_again_ends_the_same(trainer, digit_folders, broken, tmp_path, monkeypatch):
    """Memory runs out after the optimizer has changed what the state had: the retry reads it again."""
    genuine, calls = torch.optim.AdamW.step, []

    def step(self, *arguments):
        found = genuine(self, *arguments)
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    lora_before = (broken / "pu-lora.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        done = trainer("--resume", "--name", "pu-lora", "--output-dir", broken)
    assert done.returncode == 0, done.stderr
    assert len(calls) == 1 + 6 - 3
    assert (broken / "pu-lora.safetensors").stat().st_mtime_ns > lora_before
    settings = ["--micro-batch", 1, "--checkpointing", "all"]
    whole = trainer(*own(digit_folders, "--output-dir", tmp_path / "whole", *settings))
    assert whole.returncode == 0, whole.stderr
    one, other = lora(broken), lora(tmp_path / "whole")
    assert all(torch.allclose(one[k].float(), other[k].float(), rtol=1e-3, atol=1e-6) for k in one)


def test_half_a_step_is_not_saved(trainer, digit_folders, tmp_path, monkeypatch):
    """Memory that runs out between two weights leaves the earlier state."""
    calls = []

    def step(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return genuine(self, *arguments)

    genuine = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    monkeypatch.setattr(planner, "predict", lambda shape, found: Estimate(0, 0, 1))
    more = ["--save-state-every", 2, "--optimizer", "adamw"]
    done = trainer(*own(digit_folders, "--output-dir", tmp_path, *more))
    assert done.returncode == 3, done.stderr
    assert RunDir(tmp_path, "pu-lora").load_state()["progress"]["step"] == 2


def test_settings_changed_by_hand_are_refused(trainer, broken):
    path = broken / "pu-lora" / "config.toml"
    path.write_text(re.sub(r"(?m)^lr = .*$", "lr = 0.5", path.read_text()))
    refused = trainer("--resume", "--name", "pu-lora", "--output-dir", broken)
    assert refused.returncode == 2
    assert re.search(r"this is not the interrupted run: --lr was [0-9.e-]+, is 0\.5", refused.stderr), refused.stderr


@pytest.fixture
def own_folders(digit_folders, tmp_path):
    """Folders that may be changed."""
    return {kind: Path(shutil.copytree(digit_folders[kind], tmp_path / kind)) for kind in ("unlabeled", "sensitive")}


CHANGES = {
    "another picture": lambda u, s: Image.new("RGB", (64, 64), "red").save(sorted(u.glob("*.png"))[0]),
    "from one folder to the other": lambda u, s: sorted(u.glob("*.png"))[0].rename(s / "zz.png"),
    "another order": lambda u, s: sorted(u.glob("*.png"))[0].rename(u / "zz.png"),
    "a caption": lambda u, s: sorted(u.glob("*.png"))[0].with_suffix(".txt").write_text("something else"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused(trainer, own_folders, tmp_path, change):
    out = tmp_path / "out"
    done = trainer(*own(own_folders, "--output-dir", out, "--steps", 2))
    assert done.returncode == 0, done.stderr
    CHANGES[change](*own_folders.values())
    refused = trainer("--resume", "--name", "pu-lora", "--output-dir", out, "--steps", 4)
    assert refused.returncode == 2
    assert "the model, the images, their captions or their split have changed" in refused.stderr


def test_the_same_data_may_lie_elsewhere(trainer, own_folders, tmp_path):
    """Folders and output are moved, and named anew."""
    done = trainer(*own(own_folders, "--output-dir", tmp_path / "out", "--steps", 2))
    assert done.returncode == 0, done.stderr
    (tmp_path / "out").rename(tmp_path / "moved")
    words = ["--resume", "--output-dir", tmp_path / "moved", "--name", "pu-lora", "--steps", 4]
    for kind, folder in own_folders.items():
        words += [f"--{kind}", folder.rename(tmp_path / f"{kind} elsewhere")]
    done = trainer(*words)
    assert done.returncode == 0, done.stderr


def test_a_preset_says_nothing_of_number_formats(trainer, digit_folders, tmp_path):
    done = trainer(*own(digit_folders, "--output-dir", tmp_path, "--steps", 2, "--weights", "bf16"))
    assert done.returncode == 0, done.stderr
    words = ["--resume", "--name", "pu-lora", "--output-dir", tmp_path, "--steps", 3]
    done = trainer(*words, "--lowvram")
    assert done.returncode == 0, done.stderr
    refused = trainer(*words, "--weights", "fp8")
    assert refused.returncode == 2
    assert "--weights: this run was started with bf16, not fp8" in refused.stderr


def test_a_state_that_does_not_say_of_what(trainer, broken):
    run = RunDir(broken, "pu-lora")
    state = run.load_state()
    run.save_state(3, {key: value for key, value in state.items() if key != "run"})
    refused = trainer("--resume", "--name", "pu-lora", "--output-dir", broken)
    assert refused.returncode == 2
    assert "an older version saved this state" in refused.stderr


def test_number_formats_stay_what_they_were():
    """Less memory may be free than at the start, which "auto" would answer with fp8."""
    state = {"run": {"formats": {"device": "cuda", "precision": "fp16", "weights": "fp8"}}}
    config = TrainConfig(base="x")
    found = resume.with_formats(config, state, torch.device("cuda"))
    assert (found.precision, found.weights) == ("fp16", "fp8")
    assert resume.with_formats(config, state, torch.device("cpu")) == config
    fixed = config.model_copy(update={"weights": "fp16"})
    assert resume.with_formats(fixed, state, torch.device("cuda")).weights == "fp16"
    assert resume.with_formats(config, None, torch.device("cuda")) == config


@pytest.mark.long
def test_advice_knows_how_far_it_came(monkeypatch):
    from trainer.builtin import MODEL

    config, base = TrainConfig(base=str(MODEL), resolution=64), Base(MODEL)
    frugal = {"precision": "fp32", "weights": "fp8", "checkpointing": 99, "offload": 99, "attention": "sdpa"}
    frugal["micro_batch"] = 1
    planned = {"event": "plan", "switches": frugal}
    assert planner.advice(config, base, [planned]).startswith("Every saving is on")
    assert "Largest saving still off" in planner.advice(config, base, [])
    encoding = {"event": "phase", "name": "encode"}
    assert "while images were encoded" in planner.advice(config, base, [planned, encoding])
    training = {"event": "phase", "name": "train", **frugal, "micro_batch": 8}
    assert "--micro-batch 1" in planner.advice(config, base, [planned, encoding, training])
    monkeypatch.setattr(planner, "predict", lambda shape, found: Estimate(0, 0, 1 if found.weights == "fp8" else 9))
    plain = {**training, "weights": "fp32"}
    assert "--weights fp8" in planner.advice(config, base, [plain])
    assert "--weights fp8" not in planner.advice(config, base, [plain, {"event": "step"}])  # a resume keeps its formats


def test_a_failed_picture_at_the_end_is_only_told(trainer, digit_folders, tmp_path, monkeypatch):
    from trainer.training import before_after

    def pictures(*arguments, **more):
        raise RuntimeError("no kernel for this card")

    monkeypatch.setattr(before_after, "generate_pictures", pictures)
    done = trainer(*own(digit_folders, "--output-dir", tmp_path, "--sample-every", 4))
    assert done.returncode == 0, done.stderr
    assert "no picture at step 4: no kernel for this card" in done.stdout + done.stderr
    assert "no pictures before and after could be made: no kernel for this card" in done.stdout + done.stderr
    assert (tmp_path / "pu-lora.safetensors").exists()
    assert "Before and after" not in (tmp_path / "pu-lora" / "report.html").read_text()


def test_a_nan_is_named_without_a_sensitive_folder(trainer, digit_folders, tmp_path, monkeypatch):
    genuine = temperature.LossScale.losses
    calls = []

    def losses(self, errors, t, elements):
        calls.append(errors.requires_grad)
        return genuine(self, errors, t, elements) * (float("inf") if sum(calls) > 2 else 1)

    monkeypatch.setattr(temperature.LossScale, "losses", losses)
    data = ["--unlabeled", digit_folders["unlabeled"], "--base", "builtin", "--resolution", 64, "--prompt", "x"]
    data += ["--objective", "unsupervised", "--steps", 4, "--batch-unlabeled", 2, "--images", 0, "--rate-images", 0]
    done = trainer(*data, "--rank", 2, "--output-dir", tmp_path, "--micro-batch", 2)
    assert done.returncode == 1
    assert re.search(r"step 3: loss (inf|nan)", done.stderr), done.stderr
    assert RunDir(tmp_path, "pu-lora").load_state()["progress"]["step"] == 2


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="sets a limit as POSIX has it")
def test_a_disk_that_takes_no_more(digit_folders, tmp_path):
    """A real one: files may grow to 100 kB only, which a state does not fit into."""
    import resource

    words = own(digit_folders, "--output-dir", tmp_path, "--rank", 16, "--save-state-every", 1)
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "error: cannot write" in done.stderr and "File too large" in done.stderr
    assert "bug" not in done.stderr and "Traceback" not in done.stderr


def test_what_the_disk_says_of_a_latent_is_told_too(tmp_path):
    with pytest.raises(OSError, match="kept"), replacing(tmp_path / "kept", durable=False):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("phase", ["encode", "prior", "calibrate"])
def test_a_run_stopped_before_its_first_step_resumes(trainer, digit_folders, tmp_path, monkeypatch, phase):
    from trainer.common.errors import Stopped
    from trainer.data.latent_cache import LatentCache
    from trainer.training import run, training_loop

    def stop(*_, **__):
        raise Stopped

    place = {"encode": (LatentCache, "_encode_captions"), "prior": (run, "resolve_prior")}
    place["calibrate"] = (training_loop, "calibrate")
    with monkeypatch.context() as patch:
        patch.setattr(*place[phase], stop)
        stopped = trainer(*own(digit_folders, "--output-dir", tmp_path))
    assert stopped.returncode == 130
    assert "to continue: python -m trainer --resume" in stopped.stderr
    encoded = sorted((tmp_path / "pu-lora" / "cache").rglob("*.safetensors"))
    assert encoded
    ages = [path.stat().st_mtime_ns for path in encoded]
    with monkeypatch.context() as patch:
        patch.setattr(LatentCache, "_encode_images", stop)  # all images are encoded: none again
        resumed = trainer("--resume", "--output-dir", tmp_path, "--keep-cache")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming" in resumed.stderr + resumed.stdout
    assert [path.stat().st_mtime_ns for path in encoded] == ages
    assert trainer(*own(digit_folders, "--output-dir", tmp_path / "whole")).returncode == 0
    assert same(lora(tmp_path), lora(tmp_path / "whole"))


def test_a_second_run_of_a_name_says_so(trainer, digit_folders, tmp_path):
    (tmp_path / "pu-lora").mkdir()
    (tmp_path / "pu-lora" / "config.toml").touch()
    done = trainer(*own(digit_folders, "--output-dir", tmp_path, "--steps", 1))
    assert done.returncode == 0, done.stderr
    assert "pu-lora exists already: this run is pu-lora-2" in done.stdout + done.stderr


def test_loras_are_saved_on_the_way(trainer, digit_folders, tmp_path):
    more = ["--save-every", 2, "--lr-scheduler", "constant", "--save-precision", "fp32"]
    assert trainer(*own(digit_folders, "--output-dir", tmp_path, *more)).returncode == 0
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == ["pu-lora-000002.safetensors", "pu-lora-000004.safetensors", "pu-lora.safetensors"]
    on_the_way = safetensors.torch.load_file(tmp_path / names[0])
    assert not same(on_the_way, lora(tmp_path))
    assert lora_file.read_metadata(tmp_path / names[0])["pu_steps"] == "2"


def test_other_repeats_are_other_data(tmp_path):
    """The number in a sub-folder's name decides how often its images are shown."""
    encoded = Encoded(Store(tmp_path), {(tmp_path / "a.png", PLAIN): "latent"}, {"x": "text"})
    folders = [Folders([Sample(tmp_path / "a.png", "x", repeats=n)], [], [], []) for n in (1, 1, 2)]
    first, same, other = (resume.digest(found, encoded, Base(MODEL)) for found in folders)
    assert first == same != other
