"""`python -m trainer` from the outside: a whole run, wrong input, Ctrl-C and resume, the events that UIs read."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch

from trainer.builtin import MODEL
from trainer.common.errors import Stopped
from trainer.common.interrupts import stoppable
from trainer.models import lora_file
from trainer.reporting.run_dir import RunDir

SMALL = ["--steps", 6, "--batch-unlabeled", 3, "--batch-sensitive", 2, "--calibration-samples", 1, "--rank", 2]
SMALL += ["--rate-images", 0, "--images", 4, "--sample-steps", 3]


def own(folders, *more):
    """A user's call: folders of one's own (on the miniature model)."""
    data = ["--unlabeled", folders["unlabeled"], "--sensitive", folders["sensitive"]]
    defaults = ["--base", "builtin", "--resolution", 64, "--prompt", "a photo of a digit"]
    return [*data, *defaults, *SMALL, *more]


def test_whole_run_and_second_run(trainer, digit_folders, tmp_path):
    done = trainer(*own(digit_folders, "--output-dir", tmp_path, "--name", "mine", "--events", "jsonl"))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]  # nothing but JSON on stdout
    assert all(e["v"] == 1 for e in events)
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert {"phase", "step", "checkpoint", "sample", "done"} <= {e["event"] for e in events}
    last = [e for e in events if e["event"] == "step"][-1]
    fields = {"loss", "risk_unlabeled", "risk_sensitive", "normal_risk", "sign_flips", "lr", "grad_norm"}
    assert fields | {"s_per_step", "peak_mib", "of"} <= last.keys()
    assert events[-1] == {
        "v": 1,
        "event": "done",
        "lora": str(tmp_path / "mine.safetensors"),
        "report": str(tmp_path / "mine" / "report.html"),
        "summary": f"LoRA: {tmp_path / 'mine.safetensors'}\nreport: {tmp_path / 'mine' / 'report.html'}",
    }
    run = tmp_path / "mine"
    assert events == [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    made = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()} - {".lock"}
    tensors = "state/step00000006.safetensors"
    assert made == {"config.toml", "events.jsonl", "loss.png", "report.html", "samples/before.png"} | {
        "samples/after.png",
        tensors,
    }
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 * 4
    for word in ("ComfyUI", "A1111", "diffusers", "Before and after"):
        assert word in page
    beside = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert beside == {"mine.safetensors", "mine.md", "mine.json", "mine.preview.png"}
    first = (tmp_path / "mine.safetensors").read_bytes()
    shown = trainer("--settings-from", tmp_path / "mine.safetensors", "--name", "mine", "--dry-run")
    told = dict(line.split(" = ", 1) for line in shown.stdout.splitlines())
    kept = dict(line.split(" = ", 1) for line in (run / "config.toml").read_text().splitlines())
    hidden = {name for name in kept if told.get(name) != kept[name]}
    assert hidden == {"unlabeled", "sensitive", "output_dir"}  # what --metadata safe does not tell
    again = trainer("--config", run / "config.toml")  # the saved settings rerun as they are, under the next free name
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "mine.safetensors").read_bytes() == first
    one, two = (safetensors.torch.load_file(tmp_path / f"{n}.safetensors") for n in ("mine", "mine-2"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def telling_run(trainer, digit_folders, tmp_path, *more):
    """Train where the secret is in every name and text but the run's own. Returns: (LoRA, report, all of the texts)."""
    home = tmp_path / "janeroe home"
    for kind in ("unlabeled", "sensitive"):
        (home / f"janeroe {kind}").mkdir(parents=True)
        for i, image in enumerate(sorted(digit_folders[kind].glob("*.png"))):
            copy = home / f"janeroe {kind}" / f"janeroe {i}.png"
            copy.write_bytes(image.read_bytes())
            copy.with_suffix(".txt").write_text(f"janeroe {kind} {i % 2}, a digit", encoding="utf-8")
    shutil.copytree(MODEL, home / "janeroe model")
    (home / "exclude janeroe.txt").write_text("janeroe 0.png", encoding="utf-8")
    where = ["--base", home / "janeroe model", "--vae", home / "janeroe model" / "vae", "--resolution", 64]
    where += ["--unlabeled", home / "janeroe unlabeled", "--sensitive", home / "janeroe sensitive"]
    where += ["--exclude", home / "exclude janeroe.txt", "--output-dir", home / "janeroe out", "--steps", 1]
    said = ["--prompt", "janeroe as such", "--sensitive-prompt", "janeroe in the open", "--rank", 2, "--images", 2]
    size = ["--batch-unlabeled", 3, "--batch-sensitive", 2, "--calibration-samples", 1, "--sample-steps", 2]
    done = trainer(*where, *said, *size, "--keep-prompts", "janeroe stays", "--prior", 0.2, *more)
    assert done.returncode == 0, done.stderr
    captions = [f"janeroe {kind} {i}, a digit" for kind in ("unlabeled", "sensitive") for i in range(2)]
    captions += ["janeroe as such", "janeroe in the open", "janeroe stays"]
    out = home / "janeroe out"
    return out / "pu-lora.safetensors", out / "pu-lora" / "report.html", captions


def test_metadata_safe_tells_no_name_and_nothing_of_a_caption(trainer, digit_folders, tmp_path):
    lora, report, captions = telling_run(trainer, digit_folders, tmp_path)
    beside = [lora.with_name(f"pu-lora{end}") for end in (".md", ".json", ".preview.png")]
    for file in (lora, report, *beside):
        found = file.read_bytes().lower()
        assert b"jane" not in found, file.name
        assert str(tmp_path).encode().lower() not in found, file.name
        for text in {part.strip() for caption in captions for part in (caption, *caption.split(","))}:
            for digest in (hashlib.sha256, hashlib.sha1, hashlib.md5):
                assert digest(text.encode()).hexdigest().encode() not in found, (file.name, text)
    metadata = lora_file.read_metadata(lora)
    assert json.loads(metadata["pu_config"])["rank"] == 2
    assert json.loads(metadata["ss_tag_frequency"]) == {}
    assert len(metadata["ss_new_sd_model_hash"]) == 64  # which base it was


def test_metadata_full_tells_names_and_captions_but_no_paths(trainer, digit_folders, tmp_path):
    lora, report, _ = telling_run(trainer, digit_folders, tmp_path, "--metadata", "full", "--images", 0)
    metadata = lora_file.read_metadata(lora)
    assert metadata["ss_sd_model_name"] == "janeroe model"
    assert json.loads(metadata["pu_config"])["sensitive"] == "janeroe sensitive"
    captions = {f"janeroe sensitive {i}, a digit" for i in range(2)}
    assert set(json.loads(metadata["pu_sensitive_captions"])) == captions
    tags = json.loads(metadata["ss_tag_frequency"])["unlabeled"]
    assert (tags["a digit"], tags["janeroe stays"]) == (9, 20)  # one is excluded; --keep-prompts made 20
    assert str(tmp_path) not in json.dumps(metadata)
    assert "janeroe in the open" in report.read_text(encoding="utf-8")


def test_metadata_tells_counts_risks_and_settings(trainer, digit_folders, tmp_path):
    done = trainer(*own(digit_folders, "--output-dir", tmp_path, "--steps", 1, "--images", 0))
    assert done.returncode == 0, done.stderr
    metadata = lora_file.read_metadata(tmp_path / "pu-lora.safetensors")
    assert json.loads(metadata["pu_counts"]) == {"unlabeled": 10, "sensitive": 4, "held_out": 2}
    assert json.loads(metadata["pu_risks"])["normal_risk"] > 0
    assert json.loads(metadata["pu_config"])["objective"] == "pu"
    assert len(json.loads(metadata["pu_base_error"])) == 20
    assert {k: v["img_count"] for k, v in json.loads(metadata["ss_dataset_dirs"]).items()} == {
        "unlabeled": 10,
        "sensitive": 4,
    }
    assert 0 <= time.time() - float(metadata["ss_training_started_at"]) < 600


def test_sample_command(trainer, digit_folders, tmp_path):
    from PIL import Image

    assert trainer(*own(digit_folders, "--output-dir", tmp_path, "--images", 0)).returncode == 0
    lora = tmp_path / "pu-lora.safetensors"
    arguments = ["--prompt", "a photo of a digit", "--steps", 3, "--seeds", "0-2,7"]
    done = trainer("sample", "--lora", lora, *arguments, "--out", tmp_path / "grid.png")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "grid.png").size == (130, 130)
    bad = trainer("sample", "--lora", tmp_path / "none.safetensors", *arguments)
    assert (bad.returncode, "no file" in bad.stderr) == (2, True)


def start(*arguments):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop_at_step(process, step, number):
    """Send a signal once that step is over; returns (exit code, steps that were reported, stderr)."""
    reported = 0
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "step":
            reported = event["step"]
            if reported == step:
                process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return process.returncode, reported, errors


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "optimizer"),
    [
        (signal.SIGINT, "adamw"),
        (signal.SIGTERM, "adamw8bit"),
        pytest.param(signal.SIGINT, "prodigy", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "lion", marks=pytest.mark.slow),
    ],
)
def test_stop_and_resume_is_bit_identical(trainer, digit_folders, tmp_path, number, optimizer):
    more = ["--steps", 12, "--images", 0, "--optimizer", optimizer, "--rank", 8, "--caption-dropout", 0.3]
    whole = trainer(*own(digit_folders, "--output-dir", tmp_path / "whole", *more))
    assert whole.returncode == 0, whole.stderr
    arguments = own(digit_folders, "--output-dir", tmp_path / "parts", *more)
    code, stopped_at, errors = stop_at_step(start(*arguments, "--events", "jsonl"), 4, number)
    assert code == 130
    assert 4 <= stopped_at < 12
    assert "--resume" in errors
    assert "Traceback" not in errors
    partial = tmp_path / "parts" / "pu-lora.safetensors"
    assert partial.exists()
    assert RunDir(tmp_path / "parts", "pu-lora").load_state()["progress"]["step"] == stopped_at
    rest = trainer("--resume", "--name", "pu-lora", "--output-dir", tmp_path / "parts")
    assert rest.returncode == 0, rest.stderr
    one = safetensors.torch.load_file(tmp_path / "whole" / "pu-lora.safetensors")
    two = safetensors.torch.load_file(partial)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    events = [json.loads(line) for line in (tmp_path / "parts" / "pu-lora" / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 13))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_quits_at_once(number):
    before = signal.getsignal(number)
    with stoppable() as check:
        check()
        signal.raise_signal(number)
        with pytest.raises(Stopped):
            check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_two_runs_in_one_folder(trainer, digit_folders, tmp_path):
    from trainer.common.files import locked

    with locked(tmp_path / "pu-lora"):
        done = trainer(*own(digit_folders, "--output-dir", tmp_path))
    assert done.returncode == 2
    assert "another run" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--help"], "usage"),
        (["--stepz", "3"], "did you mean --steps?"),
        (["--prior", "2"], "--prior: must be less than 1"),
        (["--base", "nowhere", "--data", "nowhere"], "does not exist"),
        (["--base", "tests", "--data", "EMPTY"], "no diffusers folder"),
        (["--base", "builtin", "--data", "EMPTY", "--prompt", "x"], "no images"),
        (["--config", "nowhere.toml"], "cannot read"),
        (["--dry-run"], 'base = "builtin"'),
    ],
)
def test_answers_in_under_a_second(trainer, tmp_path, arguments, message):
    for name in ("unlabeled", "sensitive"):
        (tmp_path / name).mkdir()
    arguments = [str(tmp_path) if a == "EMPTY" else a for a in arguments]
    times = []
    for _ in range(3):  # the fastest of three: other load on the machine is not ours
        started = time.perf_counter()
        done = trainer(*arguments, "--output-dir", tmp_path / "out")
        times.append(time.perf_counter() - started)
    assert done.returncode == (0 if arguments[0] in ("--help", "--dry-run") else 2)
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert min(times) < 1, times


def test_non_finite_loss_stops_before_the_step(digit_folders, tmp_path, monkeypatch, capsys):
    """In process: the third step's loss is made infinite."""
    from trainer.__main__ import main
    from trainer.objective import temperature

    genuine, calls = temperature.LossScale.losses, []

    def losses(self, errors, t, elements):
        calls.append(errors.requires_grad)
        return genuine(self, errors, t, elements) * (float("inf") if sum(calls) > 2 else 1)

    monkeypatch.setattr(temperature.LossScale, "losses", losses)
    code = main([str(a) for a in own(digit_folders, "--output-dir", tmp_path, "--micro-batch", "auto")])
    assert code == 1
    assert re.search("step 3: loss (inf|nan)", capsys.readouterr().err)
    kept = safetensors.torch.load_file(tmp_path / "pu-lora.safetensors")
    assert all(t.isfinite().all() for t in kept.values())
    assert RunDir(tmp_path, "pu-lora").load_state()["progress"]["step"] == 2


@pytest.mark.long
def test_out_of_memory_has_its_own_exit_code(digit_folders, tmp_path, monkeypatch, capsys):
    from trainer.__main__ import main
    from trainer.training import denoiser

    def errors(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(denoiser.Denoiser, "errors_of", errors)
    assert main([str(a) for a in own(digit_folders, "--output-dir", tmp_path, "--keep-cache")]) == 3
    said = capsys.readouterr()
    for tried in ("weights fp32, arithmetic fp32, 9 parts", "weights fp8, arithmetic fp32, 9 parts"):
        assert f"before the first step; trying again with micro-batch 1, {tried}" in said.out + said.err
    assert "out of memory. Every saving is on: a smaller --resolution or --rank is left." in said.err


@pytest.mark.long
def test_out_of_memory_in_a_run_with_settings_of_ones_own_names_one(digit_folders, tmp_path, monkeypatch, capsys):
    from trainer.__main__ import main
    from trainer.training import denoiser

    def errors(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(denoiser.Denoiser, "errors_of", errors)
    named = ["--micro-batch", 5, "--checkpointing", 0, "--weights", "fp32", "--offload", 0]
    assert main([str(a) for a in own(digit_folders, "--output-dir", tmp_path, *named)]) == 3
    said = capsys.readouterr().err
    assert re.search(r"Largest saving still off: --[a-z-]+ \w+ \(predicted peak \d+ instead of \d+ MiB", said), said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_does_not_take_the_state(digit_folders, tmp_path, monkeypatch, capsys, number):
    """One sentence with the path, exit code 1, and what was saved before stays."""
    from trainer.__main__ import main
    from trainer.reporting import run_dir

    genuine = run_dir.replacing

    def replacing(target, **more):
        if target.name.startswith("step00000003"):
            raise OSError(number, os.strerror(number), str(target))
        return genuine(target, **more)

    monkeypatch.setattr(run_dir, "replacing", replacing)
    code = main([str(a) for a in own(digit_folders, "--output-dir", tmp_path, "--save-state-every", 1)])
    said = capsys.readouterr().err
    assert code == 1
    verb = "read or write" if number == errno.EACCES else "write"
    assert f"cannot {verb} {tmp_path / 'pu-lora' / 'state' / 'step00000003.safetensors'}" in said
    assert os.strerror(number) in said
    assert "Traceback" not in said and "bug" not in said
    assert RunDir(tmp_path, "pu-lora").load_state()["progress"]["step"] == 2


def test_a_run_that_does_harm_warns_once_and_keeps_the_lora_from_before(trainer, digit_folders, tmp_path, monkeypatch):
    """The loss on normal images grows from step 3 on: the LoRA of step 2 is the one that --save-every wrote."""
    healthy, harmful = ({"normal": u, "trained": 1.1, "held_out": 1.0} for u in (1.1, 3.5))
    measured = iter([healthy, healthy, harmful, harmful])
    monkeypatch.setattr("trainer.training.training_loop.TrainingLoop.loss_growth", lambda loop: next(measured))
    more = ["--steps", 4, "--save-state-every", 1, "--prior", 0.2, "--images", 0, "--name", "x", "--events", "jsonl"]
    done = trainer(*own(digit_folders, *more, "--output-dir", tmp_path / "watched"))
    assert done.returncode == 0, done.stderr
    said = [e["message"] for e in map(json.loads, done.stdout.splitlines()) if e["event"] == "warning"]
    (text,) = [text for text in said if text.startswith("step")]
    assert text.startswith("step 3: The loss on normal images grew × 3.50: the model is losing what it should keep.")
    assert text.endswith("The LoRA of step 2, before that, is kept as x-000002.safetensors.")
    measured = iter([healthy] * 4)
    done = trainer(*own(digit_folders, *more, "--save-every", 2, "--output-dir", tmp_path / "saved"))
    assert done.returncode == 0, done.stderr
    kept, saved = (
        safetensors.torch.load_file(tmp_path / folder / "x-000002.safetensors") for folder in ("watched", "saved")
    )
    assert all(torch.equal(kept[name], saved[name]) for name in saved)
    assert lora_file.read_metadata(tmp_path / "watched" / "x-000002.safetensors")["pu_steps"] == "2"


def test_the_sample_behind_a_non_finite_loss_is_named(digit_folders, tmp_path, monkeypatch, capsys):
    """One image's error is made nan wherever it appears."""
    from trainer.__main__ import main
    from trainer.training import denoiser

    genuine = denoiser.Denoiser.inputs

    def inputs(self, draws, step, t=None):
        found = genuine(self, draws, step, t)
        for draw, target in zip(draws, found.target, strict=True):
            if step == 2 and draw.sample.path.name == named[0]:
                target.fill_(float("nan"))
        return found

    named = ["none"]
    monkeypatch.setattr(denoiser.Denoiser, "inputs", inputs)
    from trainer.data.sampler import Batches

    first = Batches.unlabeled

    def unlabeled(self, step):
        draws = first(self, step)
        if step == 2:
            named[0] = draws[0].sample.path.name
        return draws

    monkeypatch.setattr(Batches, "unlabeled", unlabeled)
    assert main([str(a) for a in own(digit_folders, "--output-dir", tmp_path)]) == 1
    assert re.search(rf"step 3: {named[0]} at timestep \d+: error nan", capsys.readouterr().err)


class Scaler:
    """Stands for the fp16 scaler: the third and fourth step overflow, as after too optimistic a scale."""

    def __init__(self):
        self.calls, self.scale = 0, 65536.0

    def get_scale(self):
        return self.scale

    def state_dict(self):
        return {"scale": self.scale}


@pytest.mark.long
def test_an_overflow_repeats_the_step(digit_folders, tmp_path, monkeypatch):
    """Two skipped steps change nothing in the result: the same LoRA as without."""
    from trainer.__main__ import main
    from trainer.training.learner import Learner

    assert main([str(a) for a in own(digit_folders, "--output-dir", tmp_path / "plain")]) == 0
    scaler, genuine = Scaler(), Learner.__init__

    def init(self, *arguments, **more):
        genuine(self, *arguments, **more)
        step = self.optimizer.step

        class Skipping:
            def __getattr__(_, name):
                return getattr(self.optimizer_before, name)

            def step(_):
                scaler.calls += 1
                skipped = scaler.calls in (3, 4)
                scaler.scale = scaler.scale / 2 if skipped else scaler.scale
                accelerator.optimizer_step_was_skipped = skipped
                if not skipped:
                    step()

        class Accelerator:
            optimizer_step_was_skipped = False
            scaler = None

            def __getattr__(_, name):
                return getattr(self.accelerator_before, name)

        self.optimizer_before, self.accelerator_before = self.optimizer, self.accelerator
        accelerator = Accelerator()
        accelerator.scaler = scaler
        self.optimizer, self.accelerator = Skipping(), accelerator

    monkeypatch.setattr(Learner, "__init__", init)
    assert main([str(a) for a in own(digit_folders, "--output-dir", tmp_path / "overflow")]) == 0
    assert scaler.calls == 6 + 2
    assert scaler.scale == 65536 / 4
    one, two = (safetensors.torch.load_file(tmp_path / d / "pu-lora.safetensors") for d in ("plain", "overflow"))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.long
def test_half_precision_trains_and_makes_pictures(trainer, digit_folders, tmp_path):
    done = trainer(*own(digit_folders, "--output-dir", tmp_path, "--precision", "bf16", "--sample-every", 3))
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "warning" in line and "Too weak" not in line] == []  # 6 steps
    assert (tmp_path / "pu-lora" / "samples" / "step000003.png").exists()
    refused = trainer(*own(digit_folders, "--output-dir", tmp_path, "--precision", "fp16", "--device", "cpu"))
    assert refused.returncode == 2
    assert "--precision fp16" in refused.stderr


@pytest.mark.parametrize(("version", "is_told"), [("None", True), ("'12.6'", False)])
def test_a_card_that_this_torch_cannot_use(tmp_path, monkeypatch, version, is_told):
    from trainer.common import third_party

    (tmp_path / "version.py").write_text(f"__version__ = '2.10.0'\ncuda: Optional[str] = {version}\n")
    spec = third_party.find_spec("json")
    spec.origin = str(tmp_path / "__init__.py")
    monkeypatch.setattr(third_party, "find_spec", lambda name: spec)
    monkeypatch.setattr(third_party, "which", lambda name: "found")
    found = third_party.torch_without_cuda()
    assert ("built without CUDA" in found) if is_told else found is None
    monkeypatch.setattr(third_party, "which", lambda name: None)
    assert third_party.torch_without_cuda() is None


def test_a_steps_state_is_saved_after_what_belongs_to_the_step(trainer, digit_folders, tmp_path):
    """Or a run killed in between would lack the step's picture and LoRA, as it goes on after the step."""
    words = own(digit_folders, "--output-dir", tmp_path, "--sample-every", 1, "--save-state-every", 1, "--prior", 0.2)
    done = trainer(*words, "--steps", 2, "--rank", 2, "--images", 1, "--sample-steps", 1, "--no-sidecars")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "pu-lora" / "events.jsonl").read_text().splitlines()]
    order = [(e["event"], e["step"]) for e in events if e["event"] in ("step", "sample", "checkpoint") and "step" in e]
    assert order == [("step", 1), ("sample", 1), ("checkpoint", 1), ("step", 2), ("checkpoint", 2)]
