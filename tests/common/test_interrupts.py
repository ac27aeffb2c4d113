"""Being asked to stop: once, twice, and by a parent that ends."""

import signal
import threading

import pytest

from trainer.common import interrupts
from trainer.common.errors import Stopped


@pytest.fixture
def parent_is_gone(monkeypatch):
    found = threading.Event()
    monkeypatch.setattr(interrupts, "_parent_is_gone", found)
    return found


def test_a_second_signal_quits(parent_is_gone):
    with interrupts.stoppable() as check:
        check()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_a_parent_that_asks_and_then_ends_is_no_second_wish(parent_is_gone):
    """ComfyUI is closed while a cancelled training saves."""
    with interrupts.stoppable() as check:
        signal.raise_signal(signal.SIGTERM)
        parent_is_gone.set()
        signal.raise_signal(signal.SIGTERM)  # as follow_parent does
        with pytest.raises(Stopped):
            check()


def test_what_nobody_reads_is_dropped():
    class Dead:
        encoding = "utf-8"

        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    stream = interrupts._Unread(Dead())
    assert stream.write("four") == 4
    stream.flush()
    assert stream.encoding == "utf-8"
