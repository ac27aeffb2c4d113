"""Messages and progress bars as people see them: nothing glued to a bar, rates of what the bar shows."""

import re
import signal
import sys

import pytest

from trainer.common.events import EventWriter
from trainer.reporting import console
from trainer.reporting.console import Console
from trainer.reporting.run_dir import RunDir
from trainer.training import command

STEP = {"step": 1, "of": 3, "loss": 0.5, "normal_risk": 0.4, "ratio": 1.0}


def last_line(text):
    """What stays on a terminal of the last line: a carriage return begins it anew."""
    return text.rstrip("\n").split("\n")[-1].split("\r")[-1]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(console, "has_terminal", lambda: True)


def test_without_a_terminal_there_is_a_line_for_each_tenth(tmp_path, capsys):
    shown = Console(RunDir(tmp_path, "run"), jsonl=False)
    for step in range(1, 31):
        shown.emit("step", **{**STEP, "step": step, "of": 30, "s_per_step": 4.0})
    shown.close()
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "step 3 of 30, loss 0.500, normal risk 0.400, sensitive/unlabeled 1.000, 01:48 left"
    assert lines[-1] == "step 30 of 30, loss 0.500, normal risk 0.400, sensitive/unlabeled 1.000"


def test_the_last_message_has_its_own_line(tmp_path, terminal, capsys):
    shown = Console(RunDir(tmp_path, "run"), jsonl=False)
    shown.emit("step", **STEP)
    assert "0/3" in last_line(capsys.readouterr().err), "a bar is there, without an end of its line"
    shown.end("stopped; to continue: …")
    lines = capsys.readouterr().err.split("\n")
    assert lines[-2:] == ["stopped; to continue: …", ""]
    assert len(lines) == 3, "the bar ends its own line"


class Clock:
    """tqdm's time."""

    now = 1000.0

    def __call__(self):
        return self.now


def test_a_bar_starts_anew_with_each_kind_of_work(capsys, monkeypatch):
    """Thirty-two pictures in a second are 32 a second, whatever was done before and how long that took."""
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    with EventWriter(is_on=False).watched("evaluate", unit="picture") as progress:
        for done in range(3):
            progress("load", done, 2)
            clock.now += 100
        progress("before", 4, 36)  # four exist already
        clock.now += 1
        progress("before", 36, 36)
        shown = last_line(capsys.readouterr().err)
    assert shown.startswith("before: 100%")
    assert "36/36" in shown
    assert re.search(r"\[00:01<00:00, +32\.00picture/s\]", shown)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("has_state", [True, False])
def test_a_second_ctrl_c_keeps_the_hint(has_state, trainer, digit_folders, tmp_path, monkeypatch):
    """The first asks, the second quits at once: both say how to go on."""

    def train(job, ranks, console, *, is_resume):
        console.emit("step", **STEP)
        if has_state:
            console.run_dir.save_state(1, {"progress": {"step": 1}})
        with command.stoppable():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command, "_train", train)
    words = ["--base", "builtin", "--prompt", "x", "--resolution", 64, "--name", "mine", "--output-dir", tmp_path]
    words += ["--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"]]
    done = trainer(*words)
    assert done.returncode == 130
    advice = f'python -m trainer --resume --name "mine" --output-dir "{tmp_path}"'
    assert done.stderr.split("\n")[-2].startswith("stopped; ")
    assert advice in done.stderr.split("\n")[-2]
