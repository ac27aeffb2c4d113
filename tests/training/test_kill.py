"""SIGKILL at any moment: the last whole state resumes, and the LoRA ends with the same bits."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

ROOT = Path(__file__).parents[2]
STEPS = 12

# Runs the trainer with a save that says when it begins, and waits before and after it writes.
SLOW_SAVE = """
import contextlib, sys, time
from trainer.reporting import run_dir
from trainer.__main__ import main
genuine = run_dir.replacing
@contextlib.contextmanager
def replacing(target, **more):
    with genuine(target, **more) as temporary:
        is_state = target.name.startswith("step")
        if is_state:
            print('{"event": "saving"}', flush=True)
            time.sleep(0.15)
        yield temporary
        if is_state:
            time.sleep(0.15)
run_dir.replacing = replacing
sys.exit(main(sys.argv[1:]))
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_SAVE, *map(str, arguments), "--events", "jsonl"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_at(process, event, number, delay_s):
    """Kill so long after the number-th such event. Returns: the last finished step that was read by then."""
    last = 0
    for line in process.stdout:
        found = json.loads(line)
        last = found.get("step", last) if found["event"] == "step" else last
        number -= found["event"] == event
        if number == 0:
            time.sleep(delay_s)
            process.kill()
            break
    process.communicate(timeout=60)
    return last


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_runs_resume_to_the_same_bits(trainer, digit_folders, tmp_path):
    data = ["--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"], "--base", "builtin"]
    data += ["--prompt", "x", "--resolution", 64, "--steps", STEPS, "--batch-unlabeled", 2, "--batch-sensitive", 2]
    data += ["--calibration-samples", 1, "--rank", 2, "--images", 0, "--save-state-every", 1]
    whole = trainer(*data, "--output-dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    here = tmp_path / "killed"
    resume = ["--resume", "--name", "pu-lora", "--output-dir", here]
    chance = random.Random(5)
    reached = [kill_at(start(*data, "--output-dir", here), "step", 2, 0)]
    # a resumed run takes again what was not saved; five kills inside a save, which takes 0.3 s, two outside
    for event in chance.sample(["saving"] * 5 + ["step"] * 2, 7):
        assert list((here / "pu-lora" / "state").glob("step*.safetensors"))
        reached.append(kill_at(start(*resume), event, 1, chance.uniform(0, 0.3)))
    assert reached[-1] < STEPS
    done = trainer(*resume)
    assert done.returncode == 0, done.stderr
    one, two = (safetensors.torch.load_file(d / "pu-lora.safetensors") for d in (tmp_path / "whole", here))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert [p.name for p in (here / "pu-lora" / "state").iterdir()] == [f"step{STEPS:08d}.safetensors"]  # nothing torn
    events = [json.loads(line) for line in (here / "pu-lora" / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, STEPS + 1))


@pytest.mark.long
def test_a_run_whose_parent_dies_saves_what_it_has(trainer, digit_folders, tmp_path):
    """Its pipes are closed at once: nobody reads what is still printed, and the state is saved all the same."""
    data = ["--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"], "--base", "builtin"]
    data += ["--prompt", "x", "--resolution", 64, "--batch-unlabeled", 1, "--batch-sensitive", 1, "--images", 0]
    data += ["--calibration-samples", 1, "--rank", 2, "--save-state-every", 100_000, "--output-dir", tmp_path]
    words = [sys.executable, ROOT / "trainer" / "__main__.py", *data, "--steps", 100_000]
    process = subprocess.Popen(
        [*map(str, words), "--events=jsonl", "--follow-parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = next(line for line in process.stdout if json.loads(line)["event"] == "step")
    for pipe in (process.stdout, process.stderr, process.stdin):
        pipe.close()
    assert process.wait(60) == 130
    (state,) = (tmp_path / "pu-lora" / "state").glob("step*.safetensors")
    assert int(state.stem.removeprefix("step")) >= json.loads(seen)["step"]
    assert (tmp_path / "pu-lora.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="fork, SIGKILL")
def test_runs_killed_at_random_in_every_phase_end_equal(tmp_path):
    """In a process of its own: it forks. More of them: python tests/kill_often.py 1000."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "kill_often.py", "50"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every run equal" in done.stdout
