"""Stopping a run: by a signal, or because the program that started it has ended."""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from tqdm import tqdm

from .errors import STOPPED, Stopped

Check = Callable[[], None]  # raises Stopped once the user asked for it
Progress = Callable[[str, int, int], None]  # (what, done, of); may raise Stopped

FAREWELL_S = 60  # for saving what there is, once the parent is gone
_parent_is_gone = threading.Event()


@contextlib.contextmanager
def stoppable() -> Iterator[Check]:
    """Yield a function that raises Stopped once the user pressed Ctrl-C (or SIGTERM came); a second signal quits."""
    asked = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and not _parent_is_gone.is_set():  # a parent that asked to stop and then ends is no second wish
            raise KeyboardInterrupt
        asked = True
        tqdm.write("stopping after this micro-batch; once more to quit at once", file=sys.stderr)

    def check() -> None:
        if asked:
            raise Stopped

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Unread:
    """A stream whose reader may be gone: what nobody reads is dropped, instead of an error in the midst of saving."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def follow_parent() -> None:
    """Stop as on Ctrl-C when standard input ends: the program that started this process has ended or closed it."""
    sys.stdout, sys.stderr = cast(TextIO, _Unread(sys.stdout)), cast(TextIO, _Unread(sys.stderr))

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdin.read()
        _parent_is_gone.set()
        _thread.interrupt_main(signal.SIGTERM)  # does nothing where the handler is not in place yet
        time.sleep(FAREWELL_S)
        os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()
