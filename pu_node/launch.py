"""The trainer as a child process: start it, follow its events, stop it, say why it ended. Standard library only.

Nothing of the trainer is imported here: the host may run another version of its libraries, or another pack may own the
name `trainer`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TRAINER = Path(__file__).resolve().parents[1] / "trainer" / "__main__.py"
PYTHON_VARIABLE = "PU_UNLEARN_PYTHON"
OWN_ENVIRONMENT = TRAINER.parents[1] / "venv"  # where install.py says to make one
POLL_S = 0.25
GRACE_S = 1.0  # from asking the child to stop to killing it: a cancelled node must be quick
TAIL_LINES = 30
BAD_INPUT = 2  # the trainer's exit code for what the user can mend

Event = dict[str, Any]


class TrainerError(Exception):
    """The child failed; its text says why, in a sentence for people."""


def python() -> str:
    """The interpreter for the trainer: the host's own, unless an environment of its own was made for it."""
    own = OWN_ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return os.environ.get(PYTHON_VARIABLE) or str(own if own.exists() else sys.executable)


def command(words: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Argument list for the trainer. None is left out, True becomes a switch; values never become options."""
    found = [python(), str(TRAINER), *words]
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if isinstance(value, bool):
            found.append(option if value else f"--no-{option[2:]}")
        else:
            found.append(f"{option}={value}")
    return found


def follow(arguments: Sequence[str], check: Callable[[], None], *, grace_s: float = GRACE_S) -> Iterator[Event]:
    """Run the trainer and yield its events as they come.

    Args:
        check: called four times a second and after every event; what it raises stops the child and passes on.
        grace_s: how long a child that is asked to stop may take to save what it has.
    Raises: TrainerError if the child cannot start, reports an error, or ends with another code than 0.
    """
    failure: Event | None = None
    with _child([*arguments, "--events", "jsonl", "--follow-parent"], grace_s) as (process, lines, tail):
        while True:
            check()
            try:
                line = lines.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if line is None:
                break
            event = _parse(line)
            if event is None:
                tail.append(line)
                continue
            if event["event"] == "error":
                failure = event
            yield event
        code = process.wait()
        if code:
            raise TrainerError(_reason(code, failure, tail))


def _parse(line: str) -> Event | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def _reason(code: int, failure: Event | None, tail: Sequence[str]) -> str:
    if failure:
        return str(failure["message"])
    said = "\n".join(tail)
    if code == BAD_INPUT and "error: " in said:
        return said.partition("error: ")[2].strip()
    how = f"with exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        how = f"by {name}" + (", which a system short of memory sends" if name == "SIGKILL" else "")
    last = "\n".join(list(tail)[-TAIL_LINES:]).strip()
    return f"the trainer was stopped {how}" + (f":\n{last}" if last else ".")


@contextmanager
def _child(arguments: Sequence[str], grace_s: float) -> Iterator[tuple[subprocess.Popen, queue.Queue, deque]]:
    """The process, its lines of output (None at the end) and the last of what it said to people; gone afterwards."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}
    new_group = (
        {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    )
    try:
        process = subprocess.Popen(
            list(arguments),
            env=environment,
            stdin=subprocess.PIPE,  # closed when this process dies: the child then ends itself
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            **new_group,
        )
    except OSError as error:
        raise TrainerError(
            f"{arguments[0]} cannot be started ({error.strerror}). Is {PYTHON_VARIABLE} right?"
        ) from None
    lines: queue.Queue = queue.Queue()
    tail: deque = deque(maxlen=TAIL_LINES)
    readers = [
        threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, lambda text: tail.append(text or "")), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        yield process, lines, tail
    finally:
        _end(process, grace_s)
        for reader in readers:
            reader.join(GRACE_S)


def _read(stream: Any, put: Callable[[str | None], Any]) -> None:
    for line in stream:
        put(line.rstrip("\n"))
    put(None)


def _end(process: subprocess.Popen, grace_s: float) -> None:
    """Ask the child to stop (it keeps what it has), then end it with everything that it started."""
    if process.poll() is None:
        if os.name == "nt":
            process.stdin.close()  # the child asks itself to stop; Windows' terminate() would not let it save
        else:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill() if os.name == "nt" else os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
