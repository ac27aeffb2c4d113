"""The child process behind the nodes: events, errors, cancel, crash, orphans; a fake child and the real one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pu_node import environment, launch

ROOT = Path(__file__).parents[2]


def child(code):
    """Arguments of a child that runs this Python code; what `follow` adds is ignored."""
    return [sys.executable, "-c", code]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").exists() else True


def wait_gone(pid, seconds=5):
    end = time.time() + seconds
    while alive(pid) and time.time() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_command_keeps_values_values():
    found = launch.command(
        ["plan"], {"prompt": "--help; rm -rf /", "lr": 1e-4, "flip": True, "bucket": False, "vae": None}
    )
    assert found[2:] == ["plan", "--prompt=--help; rm -rf /", "--lr=0.0001", "--flip", "--no-bucket"]
    assert Path(found[1]) == ROOT / "trainer" / "__main__.py"


def test_python_can_be_another_one(monkeypatch):
    monkeypatch.setenv(launch.PYTHON_VARIABLE, "/opt/own/python")
    assert launch.command([], {})[0] == "/opt/own/python"


@pytest.fixture
def packs_folder(monkeypatch, tmp_path):
    """A folder of the test's own in place of the pack's, without an environment and without recorded checks."""
    monkeypatch.delenv(launch.PYTHON_VARIABLE, raising=False)
    for name, path in (("OWN", "venv"), ("CHECKED", "checked.json"), ("FAILED", "failed.txt"), ("STATE", "")):
        monkeypatch.setattr(environment, name, tmp_path / path)
    own = tmp_path / "venv" / "bin" / "python"
    monkeypatch.setattr(environment, "own_python", lambda: own)
    environment._checked_here.cache_clear()
    yield tmp_path
    environment._checked_here.cache_clear()


def make_own():
    environment.own_python().parent.mkdir(parents=True)
    environment.own_python().touch()
    return str(environment.own_python())


def test_the_hosts_python_trains_where_its_packages_fit(packs_folder, monkeypatch):
    assert launch.python() == sys.executable
    own = make_own()
    assert launch.python() == sys.executable
    monkeypatch.setattr(environment, "missing", lambda: ["diffusers is missing"])
    assert launch.python() == own


def test_a_host_whose_imports_fail_is_not_chosen(packs_folder, monkeypatch):
    """install.py recorded it; a change of the host's packages asks for a new check."""
    monkeypatch.setattr(environment, "import_error", lambda python: "ImportError: broken")
    assert environment.record(sys.executable) == "ImportError: broken"
    with pytest.raises(launch.TrainerError, match=r"not installed: ImportError: broken\."):
        launch.python()
    own = make_own()
    assert launch.python() == own
    monkeypatch.setattr(environment, "ALSO_WATCHED", ("pip",))
    assert launch.python() == sys.executable


def test_before_the_card_is_cleared_imports_are_checked_once(packs_folder, monkeypatch):
    checked = []
    monkeypatch.setattr(environment, "import_error", lambda python: checked.append(python) or "ImportError: broken")
    assert launch.python() == sys.executable
    for _ in range(2):
        with pytest.raises(launch.TrainerError, match="packages are not installed"):
            launch.python(is_checked=True)
    assert checked == [sys.executable]


def test_missing_packages_are_named_with_the_reason_and_one_command(packs_folder, monkeypatch):
    monkeypatch.setattr(environment, "missing", lambda: ["diffusers is missing (needed: >=0.35,<0.43)"])
    (packs_folder / "failed.txt").write_text("the download failed: the package index cannot be reached\n")
    with pytest.raises(launch.TrainerError) as found:
        launch.command([], {})
    assert str(found.value).splitlines() == [
        "The trainer's packages are not installed: diffusers is missing (needed: >=0.35,<0.43).",
        "The last installation failed: the download failed: the package index cannot be reached.",
        "Run this in a terminal, then start again:",
        f"{sys.executable} {ROOT / 'install.py'}",
    ]


@pytest.mark.parametrize("way", ["traceback", "event"])
def test_an_import_that_fails_in_the_child_says_what_to_do(way):
    code = "import a_package_that_is_not"
    if way == "event":
        code = 'print(\'{"event": "error", "message": "ModuleNotFoundError: No module named \\\'x\\\'"}\'); exit(1)'
    with pytest.raises(launch.TrainerError) as found:
        list(launch.follow(child(code), lambda: None))
    first, _, command = str(found.value).splitlines()
    assert first.startswith("The trainer's packages are not installed: No module named '")
    assert command == environment.install_command()


def test_the_reason_is_read_to_its_end():
    """It may still be in the pipe when the child has ended."""
    code = "import sys; sys.stderr.write('error: ' + 'x' * 60000 + ' the end'); sys.stdout.close(); sys.exit(2)"
    for _ in range(10):
        with pytest.raises(launch.TrainerError, match=r"the end$"):
            list(launch.follow(child(code), lambda: None))


def test_bad_input_is_told_in_the_trainers_own_words():
    code = "import sys; print('warning: x\\nerror: --prior: too much', file=sys.stderr); exit(2)"
    with pytest.raises(launch.TrainerError, match=r"^--prior: too much$"):
        list(launch.follow(child(code), lambda: None))


def test_events_come_in_order_and_other_lines_are_skipped():
    code = (
        'print("noise"); print(\'{"event": "step", "step": 1}\'); print("[1]"); print(\'{"event": "done", "x": "ü"}\')'
    )
    found = list(launch.follow(child(code), lambda: None))
    assert found == [{"event": "step", "step": 1}, {"event": "done", "x": "ü"}]


def test_reported_error_is_the_message():
    code = 'print(\'{"event": "error", "kind": "out-of-memory", "message": "out of memory. Try less."}\'); exit(3)'
    with pytest.raises(launch.TrainerError, match=r"^out of memory\. Try less\.$"):
        list(launch.follow(child(code), lambda: None))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_crash_tells_the_last_lines():
    code = "import os, sys; print('about to fall', file=sys.stderr); sys.stderr.flush(); os.abort()"
    with pytest.raises(launch.TrainerError, match=r"by SIGABRT:\nabout to fall"):
        list(launch.follow(child(code), lambda: None))


def test_a_python_that_is_not_there():
    with pytest.raises(launch.TrainerError, match="cannot be started"):
        list(launch.follow(["/nowhere/python"], lambda: None))


def test_undecodable_output_does_no_harm():
    code = 'import sys; sys.stdout.buffer.write(b\'\\xff\\xfe\\n{"event": "done"}\\n\')'
    assert list(launch.follow(child(code), lambda: None)) == [{"event": "done"}]


class Cancelled(Exception):
    pass


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("is_deaf", [False, True], ids=["obeys", "ignores SIGTERM"])
def test_cancel_leaves_no_child(is_deaf, tmp_path):
    """Within two seconds, grandchildren included, also where the child does not listen."""
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if is_deaf else ""
    code = (
        f"import os, signal, subprocess, sys, time; {deaf}"
        "sub = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        'print(\'{"event": "pids", "pids": [%d, %d]}\' % (os.getpid(), sub.pid), flush=True); time.sleep(60)'
    )
    pids, started = [], 0.0

    def check():
        if pids and time.time() - started > 0.1:
            raise Cancelled

    with pytest.raises(Cancelled):
        for event in launch.follow(child(code), check):
            pids, started = event["pids"], time.time()
    assert time.time() - started < 2.2
    assert all(wait_gone(pid) for pid in (pids if is_deaf else pids[:1]))


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_the_trainer_ends_with_its_parent(tmp_path):
    """A killed host leaves no orphan: the real trainer, in the midst of training."""
    host = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pu_node import launch\n"
        "settings = {'steps': 5000, 'images': 0, 'rate_images': 0, 'output_dir': sys.argv[2]}\n"
        "for e in launch.follow(launch.command([], settings), lambda: None):\n"
        "    print(e['event'], flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", host, str(ROOT), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.strip() == "step":
            break
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_gone(int(children[0]), 30)


def test_starts_under_an_isolated_python(tmp_path):
    """As in ComfyUI's portable build, where the working directory and PYTHONPATH count for nothing."""
    command = launch.command([], {"dry_run": True})
    done = subprocess.run([command[0], "-I", *command[1:]], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'base = "builtin"' in done.stdout


def test_the_pack_imports_nothing_heavy_and_nothing_of_the_trainer():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pu_node.launch, pu_node.result_cache, pu_node.widgets;"
        "import pu_node.form, pu_node.training_job, pu_node.page_host, pu_node.webui_host;"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'trainer', 'diffusers', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
