"""Run the trainer as a child process: start it, follow its events, stop it, report why it ended. Standard library only.

Nothing of the trainer is imported here: the host may run another version of its libraries, or another pack may own the
name `trainer`.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from . import environment

TRAINER = Path(__file__).resolve().parents[1] / "trainer" / "__main__.py"
PYTHON_VARIABLE = "PU_UNLEARN_PYTHON"
POLL_S = 0.25
GRACE_S = 1.0  # from asking the child to stop to killing it: a cancelled node must be quick
SAVING_GRACE_S = 60.0  # a big model needs time to finish its micro-batch and save
TAIL_LINES = 30
BAD_INPUT = 2  # the trainer's exit code for what the user can fix
IMPORT_FAILED = re.compile(r"\b(?:ModuleNotFoundError|ImportError): (.*)")

Event = dict[str, Any]


class TrainerError(Exception):
    """The child failed; the text is the reason, in a sentence for people. kind: as in the trainer's error event."""

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass
class _Child:
    process: subprocess.Popen[str]
    lines: queue.Queue[str | None] = field(default_factory=queue.Queue)  # of its output; None at the end
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))  # the last that it printed for people

    def __post_init__(self) -> None:
        self.stdout_reader = _start_reader(self.process.stdout, self.lines.put, lambda: self.lines.put(None))
        self.stderr_reader = _start_reader(self.process.stderr, self.tail.append, lambda: None)


def python(*, is_checked: bool = False) -> str:
    """Return the interpreter for the trainer: the host's if it can train, else that of install.py's environment.

    Args: is_checked: run the import check where install.py recorded no result; takes seconds, once a process.
    Raises: TrainerError if neither can train; it holds the command that installs what is missing.
    """
    found = os.environ.get(PYTHON_VARIABLE) or environment.python(is_checked=is_checked)
    if not found:
        raise TrainerError(environment.advice())
    return found


def command(words: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Return the argument list for the trainer. None is left out, True becomes a flag; no value can be an option.

    Raises: TrainerError if the trainer's packages are not installed.
    """
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


def follow(
    arguments: Sequence[str], check: Callable[[], None], *, grace_s: float = GRACE_S, saves_alone: bool = False
) -> Iterator[Event]:
    """Run the trainer and yield its events as they come.

    Args:
        check: called four times a second and after every event; what it raises stops the child and passes on.
        grace_s: how long a child that is asked to stop may take to save what it has.
        saves_alone: whether it saves while the caller goes on, see `wait_for_saving`.
    Raises: TrainerError if the child cannot start, reports an error, or ends with another code than 0.
    """
    failure: Event | None = None
    with _child([*arguments, "--events", "jsonl", "--follow-parent"], grace_s, saves_alone) as child:
        while True:
            check()
            try:
                line = child.lines.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if line is None:
                break
            event = _parse(line)
            if event is None:
                child.tail.append(line)
                continue
            if event["event"] == "error":
                failure = event
            yield event
        code = child.process.wait()
        if code:
            child.stderr_reader.join(GRACE_S)  # the reason may still be in the pipe
            raise TrainerError(_reason(arguments[0], code, failure, child.tail), (failure or {}).get("kind", ""))


def _parse(line: str) -> Event | None:
    """Return a line of output as an event, or None if it is text for people."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def _reason(python: str, code: int, failure: Event | None, tail: Sequence[str]) -> str:
    """Return why the child ended, as a sentence where it reported one."""
    output = "\n".join(tail)
    reported = str(failure["message"]) if failure else ""
    if broken := IMPORT_FAILED.search(reported or (tail[-1] if tail else "")):
        return f"The trainer's packages are not installed: {broken[1]}.\n{environment.remedy(python)}"
    if reported:
        return reported
    if code == BAD_INPUT and "error: " in output:
        return output.partition("error: ")[2].strip()
    how = f"with exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        how = f"by {name}" + (", which a system short of memory sends" if name == "SIGKILL" else "")
    return f"the trainer was stopped {how}" + (f":\n{output.strip()}" if output.strip() else ".")


_saving: list[threading.Thread] = []  # one for each child that was asked to stop and has not ended yet


def wait_for_saving(check: Callable[[], None]) -> None:
    """Wait until every child that saves alone has ended: it still needs the card, and its state is not there yet.

    Args: check: called four times a second; what it raises passes on.
    """
    while _saving:
        check()
        _saving[0].join(POLL_S)
        _saving[:] = [thread for thread in _saving if thread.is_alive()]


@contextmanager
def _child(arguments: Sequence[str], grace_s: float, saves_alone: bool) -> Iterator[_Child]:
    """Start the child. Yields: the child.

    When the block is left, the child has ended, with all that it started; or it ends in a thread of its own.
    """
    variables = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}
    try:
        process = subprocess.Popen(
            list(arguments),
            env={**environment.child_variables(), **variables},
            stdin=subprocess.PIPE,  # closed when this process dies: the child then ends itself
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            start_new_session=os.name != "nt",
        )
    except OSError as error:
        reason = f"{arguments[0]} cannot be started ({error.strerror}). Is {PYTHON_VARIABLE} right?"
        raise TrainerError(reason) from None
    child = _Child(process)
    try:
        yield child
    finally:
        if saves_alone and process.poll() is None:
            saving = threading.Thread(target=_end, args=(child, grace_s), daemon=True)
            saving.start()
            _saving.append(saving)
        else:
            _end(child, grace_s)


def _start_reader(stream: IO[str] | None, put: Callable[[str], Any], at_end: Callable[[], Any]) -> threading.Thread:
    """Start a thread that hands on the lines of a pipe."""

    def read() -> None:
        with suppress(ValueError):  # closed while it was read
            for line in stream or ():
                put(line.rstrip("\n"))
        at_end()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    return reader


def _end(child: _Child, grace_s: float) -> None:
    """Ask the child to stop, which saves the training so far, then end it with all that it started."""
    process = child.process
    if process.poll() is None:
        _ask_to_stop(process)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()
    for reader in (child.stdout_reader, child.stderr_reader):
        reader.join(GRACE_S)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with suppress(OSError):  # what was still to be written to a dead child
                stream.close()


def _ask_to_stop(process: subprocess.Popen[str]) -> None:
    if sys.platform == "win32":
        if process.stdin:
            process.stdin.close()  # the child asks itself to stop; Windows' terminate() would not let it save
    else:
        os.killpg(process.pid, signal.SIGTERM)


def _kill(process: subprocess.Popen[str]) -> None:
    """End the child and all that it started."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
    else:
        os.killpg(process.pid, signal.SIGKILL)
