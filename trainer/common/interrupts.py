"""Stopping a run: by a signal, or because the program that started it has ended."""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from .errors import STOPPED, Stopped

Check = Callable[[], None]  # raises Stopped once the user asked for it
Progress = Callable[[str, int, int], None]  # (what, done, of); may raise Stopped

FAREWELL_S = 10  # for saving what there is, once the parent is gone


@contextlib.contextmanager
def stoppable() -> Iterator[Check]:
    """Yield a function that raises Stopped once the user pressed Ctrl-C (or SIGTERM came); a second signal quits."""
    asked = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
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


def follow_parent() -> None:
    """Stop as on Ctrl-C when standard input ends: the program that started this process has ended or closed it."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdin.read()
        _thread.interrupt_main(signal.SIGTERM)  # does nothing where the handler is not in place yet
        time.sleep(FAREWELL_S)
        os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()
