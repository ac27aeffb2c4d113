"""The command compare: what differs between runs, what came of them, and sweeps that make them."""

import json
import subprocess

import pytest

from trainer.__main__ import main
from trainer.common import trainer_process
from trainer.evaluation import sweep

QUICK = ("--steps", "3", "--images", "4", "--rate-images", "4", "--sample-steps", "2")


@pytest.fixture
def in_process(monkeypatch):
    """Sweeps call the trainer here instead of in processes that take seconds to start. Returns: the calls."""
    calls = []

    def run(command, check):
        calls.append(command[2:])
        return subprocess.CompletedProcess(command, main(command[2:]))

    monkeypatch.setattr(trainer_process.subprocess, "run", run)
    return calls


@pytest.mark.long
def test_a_sweep_trains_evaluates_and_compares(tmp_path, in_process, capsys):
    words = ["compare", "--sweep", "temperature=1,6", *QUICK, "--output-dir", str(tmp_path)]
    judging = ["--", "--n", "6", "--steps", "2", "--strengths", "0,1"]
    assert main([*words, *judging]) == 0
    assert [call[0] == "evaluate" for call in in_process] == [False, True, False, True]
    rows = json.loads((tmp_path / "compare.json").read_text())
    assert [row["temperature"] for row in rows] == ["1.0", "6.0"]
    assert rows[0].keys() == rows[1].keys()
    assert {"run", "temperature", "rate before", "rate after", "last ratio", "state"} <= rows[0].keys()
    assert "name" not in rows[0]
    assert "steps" not in rows[0]
    for row in rows:
        evaluated = json.loads((tmp_path / f"{row['run']}-evaluate" / "evaluate.json").read_text())
        assert row["rate after"].startswith(f"{evaluated['after']['rate']:.3f} (")
        assert row["judged"].startswith(
            "“a photo of a digit” by the built-in digit classifier (even is normal), balanced accuracy "
        )
    page = (tmp_path / "compare.html").read_text()
    assert page.count("data:image/png") == 2  # a grid of each
    assert page.count("<polyline") == 4  # two curves of each
    capsys.readouterr()
    done = len(in_process)
    assert main(words) == 0  # finished runs are kept
    assert len(in_process) == done
    assert "pu-digits-temperature-6" in capsys.readouterr().out
    assert main(["compare", *(str(tmp_path / f"pu-digits-temperature-{t}.safetensors") for t in (1, 6))]) == 0
    capsys.readouterr()
    runs = [str(tmp_path / f"pu-digits-temperature-{t}") for t in (1, 6)]
    assert main(["compare", *runs, "--out", str(tmp_path / "two.html"), "--events", "jsonl"]) == 0
    event = json.loads(capsys.readouterr().out)  # one line, nothing else
    assert (event["event"], event["page"]) == ("compare", str(tmp_path / "two.html"))
    assert (tmp_path / "two.png").stat().st_size > 0
    assert event["picture"] == str(tmp_path / "two.png")
    assert "pu-digits-temperature-6" in event["text"]


@pytest.mark.long
def test_a_sweep_goes_on_wherever_it_was_stopped(tmp_path, in_process, trainer):
    """Before the first state, after one, and not with what was trained with other settings."""
    words = ["compare", "--sweep", "temperature=1,6", *QUICK, "--output-dir", str(tmp_path)]
    unbegun = tmp_path / "pu-digits-temperature-1"
    unbegun.mkdir()
    (unbegun / "config.toml").write_text("temperature = 1.0\n")  # stopped while it encoded images
    assert trainer(*words).returncode == 0
    assert len(in_process) == 2
    assert not list(tmp_path.glob("*-temperature-1-2*"))
    rows = json.loads((tmp_path / "compare.json").read_text())
    assert [row["state"] for row in rows] == ["finished", "finished"]
    other = trainer(*words, "--steps", "4")
    assert other.returncode == 2
    assert "is finished, with --steps 3, not 4" in other.stderr
    left_out = tmp_path / "bad.txt"
    left_out.touch()
    calls = len(in_process)
    other = trainer("compare", "--sweep", "temperature=9,6", *words[3:], "--exclude", left_out)
    assert "temperature-6 is finished, with --exclude None, not " in other.stderr
    assert len(in_process) == calls  # said before the one that is not there yet is trained
    events = tmp_path / "pu-digits-temperature-6" / "events.jsonl"
    lines = events.read_text().splitlines()
    events.write_text("\n".join(line for line in lines if '"event": "done"' not in line) + "\n")  # killed at the end
    assert trainer(*words).returncode == 0
    assert in_process[-1][0] == "--resume"


def test_a_sweep_may_be_attacked(monkeypatch, tmp_path):
    """The attacks want a LoRA, which the sweep is about to make."""
    called = []
    monkeypatch.setattr(sweep, "run_trainer", called.append)
    attack = ["--sensitive", "trainer/builtin/pictures", "--relearn", "5"]
    made = sweep.sweep("temperature=1,2", ["--output-dir", str(tmp_path)], attack)
    assert [words[0] for words in called] == ["--output-dir", "evaluate"] * 2
    assert called[1] == ["evaluate", f"--lora={made[0]}.safetensors", f"--out={made[0]}-evaluate", *attack]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sweep", "temperature"], "--sweep: must be FIELD=A,B"),
        (["--sweep", "temprature=1,2"], "--temprature: no such option, did you mean --temperature?"),
        (["--sweep", "temperature=1,-2"], "--temperature: must be greater than 0, got '-2'"),
        (["--sweep", "temperature=1,2", "--", "--n", "0"], "--n: must be 2 or more"),
        (["--sweep", "temperature=1,2", "--", "--relearn", "5"], "--relearn: name the sensitive images"),
        (["only"], "name two runs or more"),
        (["a", "b", "--steps", "3"], "--steps: options of the trainer go with --sweep"),
        (["nowhere", "else"], "nowhere: not the folder of a run (no config.toml in it)"),
    ],
)
def test_wrong_calls_train_nothing(words, said, trainer, in_process):
    done = trainer("compare", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not in_process
