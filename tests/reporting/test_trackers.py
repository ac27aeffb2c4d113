"""--log-with: what reaches a tracker, through accelerate; a stand-in for its package writes it down."""

import json
import sys

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType

from trainer.reporting.console import Console
from trainer.reporting.run_dir import RunDir
from trainer.reporting.trackers import Tracker

TRACKIO = """
import json, os
class Run:
    def __init__(self, told): self.told, self.config = told, self
    def update(self, values, **_): self.tell(["config", values])
    def log(self, values, step=None, **_): self.tell(["log", values, step])
    def finish(self): self.tell(["finish"])
    def tell(self, what): open(self.told, "a").write(json.dumps(what) + chr(10))
def init(project, **more):
    global config
    config = run = Run(os.environ["TRACKIO_TOLD"])
    run.tell(["init", project, more])
    return run
"""
STEP = {"step": 1, "of": 2, "loss": 0.5, "normal_risk": float("nan"), "ratio": 1.25, "sign_flips": 0}


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Put a stand-in for trackio where it is found. Returns: a function that reads what it was told."""
    (tmp_path / "package" / "trackio").mkdir(parents=True)
    (tmp_path / "package" / "trackio" / "__init__.py").write_text(TRACKIO)
    (tmp_path / "package" / "trackio-1.0.dist-info").mkdir()
    (tmp_path / "package" / "trackio-1.0.dist-info" / "METADATA").write_text("Name: trackio\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setenv("TRACKIO_TOLD", str(tmp_path / "told"))
    # accelerate looks once, when it is imported: in this process that may have been before
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TRACKIO])
    yield lambda: [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    sys.modules.pop("trackio", None)


def test_numbers_of_each_step_under_the_runs_name(told, tmp_path):
    run_dir = RunDir(tmp_path, "mine")
    console = Console(run_dir, jsonl=True, tracker=lambda: Tracker("trackio", "mine", {"rank": 4, "base": None}))
    console.emit("step", **STEP)
    console.emit("step", **{**STEP, "step": 2})
    console.close()
    assert told() == [
        ["init", "pu-unlearn", {"name": "mine"}],
        ["config", {"rank": 4}],
        ["log", {"loss": 0.5, "ratio": 1.25, "sign_flips": 0}, 1],
        ["log", {"loss": 0.5, "ratio": 1.25, "sign_flips": 0}, 2],
        ["finish"],
    ]


def test_a_tracker_that_fails_ends_no_training(tmp_path):
    def begin():
        raise ConnectionError("no network")

    run_dir = RunDir(tmp_path, "mine")
    console = Console(run_dir, jsonl=True, tracker=begin)
    console.emit("step", **STEP)
    console.emit("step", **{**STEP, "step": 2})
    console.close()
    warnings = [event["message"] for event in run_dir.events() if event["event"] == "warning"]
    assert warnings == ["--log-with: given up (no network)"]
    assert len(run_dir.events()) == 3


def test_a_tracker_in_a_run(told, trainer, digit_folders, tmp_path):
    """It is told no name and no text, as the LoRA's metadata is not."""
    words = ["--base", "builtin", "--prompt", "janeroe", "--unlabeled", digit_folders["unlabeled"], "--steps", 2]
    words += ["--sensitive", digit_folders["sensitive"], "--batch-unlabeled", 2, "--batch-sensitive", 2, "--rank", 2]
    words += ["--resolution", 64, "--calibration-samples", 1, "--images", 0, "--prior", 0.2, "--no-sidecars"]
    found = trainer(*words, "--output-dir", tmp_path / "out", "--log-with", "trackio")
    assert found.returncode == 0, found.stderr
    kinds = [what[0] for what in told()]
    assert kinds == ["init", "config", "log", "log", "finish"]
    config = told()[1][1]
    assert (config["rank"], config["prior"]) == (2, 0.2)
    assert "jane" not in json.dumps(told()).lower()
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == {"pu-lora.safetensors"}


def test_a_missing_package_is_said_at_once(trainer, digit_folders):
    words = ["--base", "builtin", "--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"]]
    found = trainer(*words, "--prompt", "x", "--log-with", "clearml")
    assert found.returncode == 2
    assert "--log-with clearml: needs a package. Install it: pip install clearml" in found.stderr
