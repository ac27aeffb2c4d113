"""events.jsonl as kills, full disks and odd prompts leave it."""

import json

import pytest

from trainer.reporting.run_dir import RunDir

EVENTS = [
    {"v": 1, "event": "phase", "name": "train"},
    {"v": 1, "event": "sample", "prompt": "Küste\u2028am Meer\u0085\x0c🌊", "kind": "step"},
    {"v": 1, "event": "step", "step": 1, "loss": 0.5},
    {"v": 1, "event": "step", "step": 2, "loss": None},
    {"v": 1, "event": "done"},
]


@pytest.fixture
def run(tmp_path):
    found = RunDir(tmp_path, "x")
    for event in EVENTS:
        found.append_event(event)
    return found


def test_a_prompt_with_a_line_separator_is_one_event(run):
    assert run.events() == EVENTS


def test_every_cut_leaves_the_whole_lines_and_the_next_event(run):
    path = run.root / "events.jsonl"
    data = path.read_bytes()
    new = {"v": 1, "event": "phase", "name": "resumed"}
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        # a line is whole without its end, too
        whole = [e for i, e in enumerate(EVENTS) if len(line_ends(data)) and line_ends(data)[i] - 1 <= cut]
        assert run.events() == whole, cut
        if cut % 7 == 0 or cut > len(data) - 3:  # with fsync: slower
            run.truncate_events(1)
            kept = [e for e in whole if e.get("step", 0) <= 1]
            assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == kept, cut
            path.write_bytes(data[:cut])
        run.append_event(new)
        assert run.events() == [*whole, new], cut


def line_ends(data):
    return [i + 1 for i, byte in enumerate(data) if byte == 10]


def test_lines_that_are_no_event_are_left_out(run):
    with open(run.root / "events.jsonl", "ab") as file:
        file.write(
            b'7\n[1]\nnull\n"x"\n{}\n{"event": 3}\n{"event": "step"}\n{"event": "step", "step": "x"}\n\xff\xfe\n'
        )
        file.write(b"[" * 100_000 + b"\n")
    assert run.events() == EVENTS
