"""The command `compare`: one page over several runs, what differs and what came of it; a sweep makes them first."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common import errors
from ..common.errors import UserError
from ..common.events import EventWriter
from ..common.files import write_text
from ..common.interrupts import follow_parent
from ..config.train_config import TrainConfig
from ..metrics.judges import Accuracy
from ..reporting import html
from ..reporting.plots import draw_comparison
from ..reporting.run_history import OWN, RunSummary, read_run
from .sweep import sweep


def differing(runs: Sequence[RunSummary]) -> list[str]:
    """Settings that are not the same in all runs."""
    names = [name for name in TrainConfig.model_fields if name not in OWN]
    return [name for name in names if len({json.dumps(run.settings[name]) for run in runs}) > 1]


def rows(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]]]:
    """The table: heads, and a row for each run."""
    changed = differing(runs)
    results = [_results(run) for run in runs]
    known = list(dict.fromkeys(name for result in results for name in result))
    table = [
        [run.name, *(_shown(run.settings[name]) for name in changed), *(result.get(name, "") for name in known)]
        for run, result in zip(runs, results, strict=True)
    ]
    return ["run", *changed, *known], table


def _results(run: RunSummary) -> dict[str, str]:
    """What came of one run: measured by `evaluate` where that was called, else by the run itself."""
    found: dict[str, str] = {}
    measured = run.evaluation
    if "before" in measured:
        for kind in ("before", "after"):
            rate = measured[kind]
            found[f"rate {kind}"] = f"{rate['rate']:.3f} ({rate['low']:.3f}–{rate['high']:.3f}, n {rate['n']})"
        found["judged"] = _judged(measured)
    elif "rate_after" in run.done:
        found |= {f"rate {kind}": f"{run.done[f'rate_{kind}']:.3f}" for kind in ("before", "after")}
    for distance in measured.get("quality", {}).get("after", []):
        found[distance["name"]] = f"{distance['value']:.3g}"
    if drifts := measured.get("drift"):
        found["drift of retained prompts"] = f"{sum(d['pixels'] for d in drifts.values()) / len(drifts):.3f}"
    if run.steps:
        last = run.steps[-1]
        found["last ratio"] = "" if last["ratio"] is None else f"{last['ratio']:.2f}"
        found["sign flips"] = str(last["sign_flips"])
        found["s / step"] = f"{sorted(s['s_per_step'] for s in run.steps)[len(run.steps) // 2]:.2f}"
        found["peak MiB"] = f"{max(s['peak_mib'] for s in run.steps):.0f}"
    found["state"] = (
        "finished" if run.done else f"stopped at step {run.steps[-1]['step']}" if run.steps else "not begun"
    )
    return found


def _judged(measured: dict[str, Any]) -> str:
    """Rates are comparable where this is the same."""
    judge = measured["judge"]
    accuracy = judge["accuracy"] and Accuracy(**judge["accuracy"])
    how_well = f"balanced accuracy {accuracy.balanced:.2f}" if accuracy else "not measured"
    return f"“{measured['prompt']}” by {judge['name']}, {how_well}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def main(argv: Sequence[str]) -> int:
    """The `compare` command. Returns: an exit code. Raises: UserError."""
    own, judging = _split(argv)
    options, rest = make_parser().parse_known_args(own)
    if options.sweep:
        folders = sweep(options.sweep, rest, judging)
    else:
        strays = [word for word in (*rest, *judging) if word.startswith("-")]
        if strays:
            raise UserError(f"{strays[0]}: options of the trainer go with --sweep")
        folders = [Path(word) for word in rest]
    if len(folders) < 2:
        raise UserError("name two runs or more, such as output/a output/b, or --sweep temperature=1,6")
    runs = [read_run(folder) for folder in folders]
    if options.follow_parent:
        follow_parent()
    out = options.out or folders[0].parent / "compare.html"
    heads, table = rows(runs)
    write_page(runs, heads, table, out)
    write_text(
        out.with_suffix(".json"), json.dumps([dict(zip(heads, row, strict=True)) for row in table], indent=1) + "\n"
    )
    lines = [" | ".join(row) for row in [heads, *table]]
    places = {"page": str(out), "picture": str(out.with_suffix(".png"))}
    EventWriter(is_on=options.events is not None).answer([*lines, f"page: {out}"], "compare", **places)
    return errors.DONE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer compare",
        description="One page over several runs; or train them first: --sweep FIELD=A,B,C with options of the trainer. "
        "Behind --, options of evaluate: each run of the sweep is then evaluated.",
        usage="%(prog)s RUN RUN … | --sweep FIELD=A,B [options of the trainer] [-- options of evaluate]",
        allow_abbrev=False,
    )
    parser.add_argument("--sweep", metavar="FIELD=A,B", help="train a run for each value; finished ones are kept")
    parser.add_argument("--out", type=Path, help="HTML file; a .json goes beside it [compare.html beside the runs]")
    parser.add_argument("--events", choices=("jsonl",), help="the result as one JSON line on stdout")
    parser.add_argument("--follow-parent", action="store_true", help="end when standard input is closed")
    return parser


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before and behind `--`."""
    words = list(argv)
    return (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])


def write_page(runs: Sequence[RunSummary], heads: Sequence[str], table: Sequence[Sequence[str]], out: Path) -> None:
    curves = out.with_suffix(".png")
    draw_comparison(runs, curves)
    parts = [html.table(heads, table), html.heading("Training"), html.picture(curves)]
    pictures = []
    for run in runs:
        places = (run.folder.with_name(f"{run.name}-evaluate") / "after.png", run.folder / "samples" / "after.png")
        found = [path for path in places if path.is_file()]
        pictures += [html.picture(found[0], run.name)] if found else []
    if pictures:
        parts += [html.heading("After, the same seeds"), html.pair(pictures)]
    html.save(out, " / ".join(run.name for run in runs), parts)
