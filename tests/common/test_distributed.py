"""Two processes give the gradient and the LoRA that one gives (gloo, CPU)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors
import torch
from gradient_problems import SENSITIVE, UNLABELED, Regression, accumulated, importance_of, oracle
from safetensors.torch import load_file

from trainer.common.distributed import Ranks
from trainer.objective import pu_loss, step_gradient

ROOT = Path(__file__).parents[2]


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def torchrun(n, *arguments):
    """As users call it, offline and on loopback."""
    words = ["-m", "torch.distributed.run", f"--nproc-per-node={n}", "--standalone", *map(str, arguments)]
    return [sys.executable, *words]


def accelerate(n, *arguments):
    """accelerate's own launcher; without --multi_gpu it starts one process where there is one card, or none."""
    words = ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={n}", "--main_process_port=0"]
    return [sys.executable, *words, *map(str, arguments)]


def launch(command):
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def settings(digit_folders):
    """5 + 3 samples a step of the built-in model: uneven shares."""
    data = ["--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"]]
    data += ["--base", "builtin", "--prompt", "a photo of a digit", "--resolution", 64, "--device", "cpu"]
    data += ["--batch-unlabeled", 5, "--batch-sensitive", 3, "--calibration-samples", 1, "--rank", 8]
    return [*data, "--images", 4, "--sample-steps", 2, "--lr", "1e-3", "--save-precision", "fp32"]


def gradients(ranks):
    """Step gradients of the random problem: both signs of R, right and wrong assumption, micro-batches of 2."""
    found = {}
    for factor in (1.0, 30.0):
        for objective in pu_loss.OBJECTIVES:
            for assumed in (1, -1):
                problem = Regression(factor)
                flat, outcome = accumulated(problem, objective, 0.3, 2, assumed, True, ranks)
                found[f"{objective} {factor} {assumed}"] = (flat.tolist(), outcome.flipped, outcome.risks.normal)
    return found


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 3])
def test_step_gradient_is_that_of_one_process(world, tmp_path):
    """With shares of unequal size: 8 + 8 samples, and 3 ranks."""
    launch(torchrun(world, __file__, tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    for name, (_, flipped, _) in gradients(Ranks()).items():
        objective, factor, _ = name.split()
        wanted, risk = oracle(Regression(float(factor)), objective, 0.3, True)
        for rank in range(world):
            theirs, their_flip, their_normal = found[rank][name]
            assert ((torch.tensor(theirs) - wanted).norm() / wanted.norm()).item() <= 1e-5, (name, rank)
            assert their_flip == flipped
            if objective != "unsupervised":
                assert their_normal == pytest.approx(risk, rel=1e-4)
    assert all(found[0][name][0] == found[1][name][0] for name in found[0])  # every rank takes the very same step


def test_many_tensors_are_summed_in_one_exchange(monkeypatch):
    calls = []
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: calls.append(tensor.mul_(2).numel()))
    tensors = [torch.ones(2, 3), torch.zeros(1), torch.arange(4.0)]
    Ranks(0, 2).sum(tensors)
    assert calls == [11]
    assert [t.tolist() for t in tensors] == [[[2.0] * 3] * 2, [0.0], [0.0, 2.0, 4.0, 6.0]]


def test_a_lost_share_would_be_seen():
    """The check can fail: without the sum over ranks the gradient is another one."""
    problem = Regression(1.0)
    wanted, _ = oracle(problem, "pu", 0.3)
    weights = pu_loss.Weights("pu", 0.3, len(UNLABELED), len(SENSITIVE))
    step_gradient.accumulate(
        lambda m: (problem.losses(m), importance_of(m, False)),
        UNLABELED[::2],
        SENSITIVE[::2],
        problem.parameters,
        weights,
        assumed_sign=1,
        micro_batch=3,
    )
    found = torch.cat([p.grad.flatten() for p in problem.parameters])
    assert ((found - wanted).norm() / wanted.norm()).item() > 1e-2


@pytest.mark.long
@pytest.mark.parametrize(
    ("optimizer", "tolerance"), [("adamw", 1e-3), pytest.param("adamw8bit", 1e-2, marks=pytest.mark.slow)]
)
def test_lora_after_eight_steps(trainer, digit_folders, tmp_path, optimizer, tolerance):
    """The built-in model on two processes against one."""
    data = [*settings(digit_folders), "--steps", 8, "--optimizer", optimizer]
    one = trainer(*data, "--output-dir", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    two = launch(accelerate(2, "-m", "trainer", *data, "--output-dir", tmp_path / "two"))
    assert two.stdout.count("unlabeled: ") == 1  # only the first process speaks
    a, b = (load_file(tmp_path / name / "pu-lora.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    flat = [torch.cat([v.flatten().float() for k, v in sorted(x.items()) if "lora_" in k[-18:]]) for x in (a, b)]
    assert ((flat[0] - flat[1]).norm() / flat[0].norm()).item() <= tolerance
    steps = [json.loads(line) for line in (tmp_path / "two" / "pu-lora" / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in steps if e["event"] == "step"] == list(range(1, 9))
    files = (sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("one", "two"))
    assert next(files) == next(files)


def worker_of(launcher, rank):
    """Process id of one worker, told by its environment."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise LookupError(rank)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize("asked", ["all, by Ctrl-C", "one that writes nothing"])
def test_all_stop_when_one_is_asked(digit_folders, tmp_path, asked):
    """No worker is left waiting for a sum, and the first one saves what was reached."""
    command = torchrun(2, "-m", "trainer", *settings(digit_folders), "--steps", 100000, "--output-dir", tmp_path)
    events = tmp_path / "pu-lora" / "events.jsonl"
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            until = time.monotonic() + 120
            while not (events.exists() and '"step": 3' in events.read_text()):
                assert launcher.poll() is None, launcher.stderr.read()[-3000:]
                assert time.monotonic() < until, "no third step"
                time.sleep(0.1)
            workers = [worker_of(launcher.pid, rank) for rank in (0, 1)]
            started = time.monotonic()
            os.kill(launcher.pid if asked.startswith("all") else workers[1], signal.SIGINT)
            launcher.communicate(timeout=60)
            assert time.monotonic() - started < 25  # torchrun kills after 30 s what has not gone by itself
        finally:
            launcher.kill()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert "pu_steps" in safetensors.safe_open(tmp_path / "pu-lora.safetensors", "pt").metadata()
    assert list((tmp_path / "pu-lora" / "state").iterdir())
    assert '"stopped"' in events.read_text()


if __name__ == "__main__":  # one of the processes that `launch` starts
    from trainer.common.distributed import from_environment

    here = from_environment()
    mine = gradients(here)
    gathered = [None] * here.world
    torch.distributed.all_gather_object(gathered, mine)
    if here.is_first:
        Path(sys.argv[1]).write_text(json.dumps(gathered))
    torch.distributed.destroy_process_group()
