"""Events: one JSON line each, with the format's version; the nodes and the page read only these."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from .interrupts import Progress, stoppable

VERSION = 1

Emit = Callable[..., None]  # emit(event, **fields)


def event_record(event: str, **fields: Any) -> dict[str, Any]:
    """Return an event as it is written. nan and infinity become null, which JSON has and they have not."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
    return {"v": VERSION, "event": event, **clean}


def event_line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def is_event(found: Any) -> bool:
    """Whether a parsed line is an event: an object with a name, and a number where it is a step's."""
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        return False
    return found["event"] != "step" or type(found.get("step")) is int


class EventWriter:
    """Writes events to stdout where they were asked for (--events jsonl), and nothing otherwise."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on

    def emit(self, event: str, **fields: Any) -> None:
        if self.is_on:
            print(event_line(event_record(event, **fields)), flush=True)

    def answer(self, lines: Sequence[str], event: str, **fields: Any) -> None:
        """Give a command's result: sentences for people, or one event that holds them as text."""
        if self.is_on:
            self.emit(event, **fields, text="\n".join(lines))
        else:
            print("\n".join(lines))

    @contextlib.contextmanager
    def watched(self, name: str, *, unit: str) -> Iterator[Progress]:
        """Follow a command other than training: by an event for each step of its work, or by a bar for each kind.

        Yields: a function (what, done, of), which raises Stopped once the user asked to stop.
        """
        last: tuple[str, int, int] | None = None
        with stoppable() as check, tqdm(unit=unit, dynamic_ncols=True, disable=self.is_on) as bar:

            def progress(what: str, done: int, of: int) -> None:
                nonlocal last
                check()
                if last == (what, done, of):
                    return
                if last is None or last[0] != what:  # what exists already (done) took no time, so it sets no rate
                    bar.reset(of)
                    bar.initial = done
                last = (what, done, of)
                self.emit("phase", name=name, what=what, done=done, total=of)
                bar.desc, bar.total, bar.n = what, of, done
                bar.refresh()

            yield progress
