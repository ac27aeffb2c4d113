"""Files that are whole or absent, and what the disk says when it does not want them."""

import errno
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer.common import files
from trainer.common.errors import UserError
from trainer.common.files import describe_write_error, locked, replacing
from trainer.reporting.run_dir import RunDir, free_name


def test_what_a_kill_left_goes_with_the_next_save(tmp_path):
    """Also what the library that writes had begun beside its own target."""
    target, other = tmp_path / "x.safetensors", tmp_path / ".x.safetensors.y.abcdefgh"
    other.mkdir()
    killed = replacing(target)  # never left: as after SIGKILL
    temporary = killed.__enter__()
    (temporary.parent / ".tmpA1b2").write_bytes(b"half")
    torn = temporary.parent
    assert torn.exists() and torn.parent == tmp_path
    with replacing(target) as temporary:
        save_file({"a": torch.ones(3)}, temporary)
    assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, target.name]
    assert oct(target.stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_error_of_safetensors_is_the_disks(tmp_path):
    """It has one class for all; torch's own users know it as a bug."""
    with pytest.raises(OSError) as caught, replacing(tmp_path / "x.safetensors"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert describe_write_error(caught.value) == f"cannot write {tmp_path / 'x.safetensors'}: {os.strerror(28)}"
    with pytest.raises(SafetensorError), replacing(tmp_path / "x.safetensors"):
        raise SafetensorError("invalid header")
    with pytest.raises(FileNotFoundError, match="source"), replacing(tmp_path / "x.safetensors"):
        (tmp_path / "source").read_text()
    assert describe_write_error(FileNotFoundError(2, "no such file")) is None
    assert not list(tmp_path.iterdir())


def test_a_torn_event_stops_nothing(tmp_path):
    run = RunDir(tmp_path, "x")
    run.append_event({"event": "step", "step": 1})
    with open(run.root / "events.jsonl", "a") as file:
        file.write('{"event": "st')
    assert [e["step"] for e in run.events()] == [1]
    run.append_event({"event": "phase"})
    run.append_event({"event": "step", "step": 2})
    run.truncate_events(1)
    assert run.events() == [{"event": "step", "step": 1}, {"event": "phase"}]  # on a line of its own


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_state_that_was_read_is_let_go(tmp_path):
    """Windows deletes no file that is mapped: the next save could not drop the one that was resumed from."""
    run = RunDir(tmp_path, "x")
    run.save_state(3, {"weights": {"a": torch.arange(100_000.0)}, "step": 3})
    state = run.load_state()
    assert "step00000003" not in Path("/proc/self/maps").read_text()
    assert torch.equal(state["weights"]["a"], torch.arange(100_000.0))


@pytest.mark.parametrize("beside", ["y.safetensors", "y-merged.safetensors", "y-merged", "y-model"])
def test_a_new_name_overwrites_nothing(tmp_path, beside):
    assert free_name(tmp_path, "y") == "y"
    (tmp_path / beside).touch()
    assert free_name(tmp_path, "y") == "y-2"


def test_a_free_name_is_no_longer_than_a_name_may_be(tmp_path):
    """Or the run could not be resumed: the settings refuse it."""
    long = "猫" * 33
    (tmp_path / f"{long}.safetensors").touch()
    assert free_name(tmp_path, long) == "猫" * 32 + "-2"


@pytest.mark.parametrize("times", [2, 99])
def test_a_file_that_windows_holds_for_a_moment_is_waited_for(times, tmp_path, monkeypatch):
    target, tries, rename = tmp_path / "x.txt", [], os.replace
    target.write_text("old")

    def held(source, to):
        tries.append(to)
        if len(tries) <= times:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(source))
        rename(source, to)

    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(files, "WAITS_S", (0, 0, 0))
    if times == 2:
        files.write_text(target, "new")
        assert (target.read_text(), len(tries)) == ("new", 3)
    else:
        with pytest.raises(PermissionError) as told:
            files.write_text(target, "new")
        assert (target.read_text(), len(tries), told.value.filename) == ("old", 4, str(target))
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("FileSystem")])
def test_a_disk_without_locks_is_told(error, tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(files.FileLock, "acquire", acquire)
    with pytest.raises(UserError, match=r"gives no locks .*--output-dir"), locked(tmp_path / "x"):
        pass
