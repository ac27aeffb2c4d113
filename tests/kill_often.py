"""Kill a training at random moments of all its phases, resume it each time, and compare what comes out, bit by bit.

    python tests/kill_often.py 1000 [--seed 0]

Each round is one run: it is killed and resumed until it is done, and must then equal a run that nobody killed. The
moments are even over the time that a whole run takes, from its first file to its last picture.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image
from safetensors import safe_open

STEPS = 6
SETTINGS = f"""--base builtin --prompt x --resolution 64 --steps {STEPS} --batch-unlabeled 2 --batch-sensitive 2
--prior auto --calibration-samples 1 --rank 2 --images 2 --rate-images 2 --sample-steps 2 --sample-every 3
--save-state-every 1 --save-every 2 --device cpu --events jsonl""".split()


def begin(words: list[str], log: Path) -> int:
    """Start the trainer in a fork of this process, whose imports are done. Returns: the process's id."""
    from trainer.__main__ import main

    sys.stdout.flush()
    if number := os.fork():
        return number
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        code = main(words)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    log.with_suffix(".modules").write_text("\n".join(sys.modules))
    os._exit(code)


def import_all(modules: Path) -> None:
    """Import what a child had imported when it ended: the next ones begin with it."""
    for name in modules.read_text().split("\n"):
        with contextlib.suppress(BaseException):
            importlib.import_module(name)


def wait(number: int, seconds: float) -> int | None:
    """Wait for a process, and kill it when time is up. Returns: its exit code; None if it was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(number, signal.SIGKILL)
    _, status = os.waitpid(number, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def result(out: Path) -> dict[str, object]:
    """Return what a finished run has made: weights, pictures, steps and losses."""
    found: dict[str, object] = {}
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found[path.name] = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
    for path in sorted((out / "pu-lora" / "samples").glob("*.png")):
        found[path.name] = path.read_bytes()
    events = [json.loads(line) for line in (out / "pu-lora" / "events.jsonl").read_text().split("\n")[:-1]]
    steps = {event["step"]: event["loss"] for event in events if event["event"] == "step"}
    found["steps"] = steps
    found["order"] = [event["step"] for event in events if event["event"] == "step"]
    found["config"] = (out / "pu-lora" / "config.toml").read_text().replace(str(out), "")
    found["states"] = sorted(path.name for path in (out / "pu-lora" / "state").iterdir())
    return found


def check_whole(out: Path) -> None:
    """Raise an error if a file that a reader would find is torn."""
    for path in out.rglob("*.safetensors"):
        if not any(part.startswith(".") for part in path.relative_to(out).parts):
            with safe_open(path, "pt") as file:
                file.keys()
    for path in out.rglob("*.png"):
        if not path.name.startswith("."):
            with Image.open(path) as image:
                image.load()


def kill_often(folder: Path, data: dict[str, Path], kills: int, seed: int) -> dict[str, int]:
    """Kill a run so many times.

    Returns: how often in which phase. Raises: AssertionError if a run ends in anything else than the whole one.
    """
    words = [*SETTINGS, "--unlabeled", str(data["unlabeled"]), "--sensitive", str(data["sensitive"]), "--output-dir"]
    whole, log = folder / "whole", folder / "log.txt"
    for _ in range(2):  # the first one only tells what it imports, which takes longer than the run
        shutil.rmtree(whole, ignore_errors=True)
        started = time.monotonic()
        assert wait(begin([*words, str(whole)], log), 600) == 0, log.read_text()[-2000:]
        import_all(log.with_suffix(".modules"))
    takes, wanted = time.monotonic() - started, result(whole)
    chance, phases = random.Random(seed), dict[str, int]()
    done = 0
    while done < kills:
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        while (
            code := wait(begin(_command(words, out), log), chance.uniform(0, takes) if done < kills else 600)
        ) is None:
            done += 1
            check_whole(out)
            phase = _phase(out)
            phases[phase] = phases.get(phase, 0) + 1
            print(f"{done} of {kills}: killed in {phase}", file=sys.stderr)
        assert code == 0, (code, seed, done, log.read_text()[-2000:])
        found = result(out)
        differing = sorted(name for name in wanted.keys() | found.keys() if found.get(name) != wanted.get(name))
        assert not differing, (differing, seed, done, {name: name in found for name in differing})
    return phases


def _command(words: list[str], out: Path) -> list[str]:
    if (out / "pu-lora" / "config.toml").exists():
        return ["--resume", "--name", "pu-lora", "--output-dir", str(out), "--events", "jsonl"]
    return [*words, str(out)]


def _phase(out: Path) -> str:
    """Return the last phase that a killed run has told of."""
    path = out / "pu-lora" / "events.jsonl"
    for line in reversed(path.read_text(errors="replace").split("\n") if path.exists() else []):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] == "phase":
            return event["name"]
        if event["event"] in ("step", "checkpoint", "sample", "done"):
            return event["event"]
    return "start"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from trainer.builtin import digits

    with tempfile.TemporaryDirectory() as folder:
        data = digits.write_folders(Path(folder) / "digits", 10, 6)
        started = time.monotonic()
        phases = kill_often(Path(folder), data, options.kills, options.seed)
        print(
            f"{sum(phases.values())} kills in {time.monotonic() - started:.0f} s, every run equal; by phase: {phases}"
        )


if __name__ == "__main__":
    main()
