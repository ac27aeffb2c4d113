"""The command `compare`: one page about the settings and results of several runs; a sweep trains them first."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from ..common import errors
from ..common.errors import UserError
from ..common.events import EventWriter
from ..common.files import write_text
from ..common.interrupts import follow_parent
from ..config.parser import ProgramOptions, Takes, command_parser, refuse, validated
from ..config.train_config import TrainConfig, option
from ..metrics.judges import Accuracy
from ..reporting import html
from ..reporting.curves import Chart, chart
from ..reporting.plots import CURVES, draw_comparison, smooth
from ..reporting.run_history import BOOKKEEPING, RunSummary, read_run
from .sweep import sweep


class CompareOptions(ProgramOptions):
    """Which runs to train first, and where the page goes."""

    sweep: Annotated[str | None, Takes("FIELD=A,B")] = option(
        None, "train one run for each value first; finished runs are kept"
    )
    out: Path | None = option(None, "HTML file; a .json file is written beside it [compare.html beside the runs]")


def differing(runs: Sequence[RunSummary]) -> list[str]:
    """Return the names of the settings that are not the same in all runs."""
    names = [name for name in TrainConfig.model_fields if name not in BOOKKEEPING]
    return [name for name in names if len({json.dumps(run.settings[name]) for run in runs}) > 1]


def rows(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]]]:
    """Return the heads of the table, and a row for each run."""
    changed = differing(runs)
    results = [_results(run) for run in runs]
    known = list(dict.fromkeys(name for result in results for name in result))
    table = [
        [run.name, *(_shown(run.settings[name]) for name in changed), *(result.get(name, "") for name in known)]
        for run, result in zip(runs, results, strict=True)
    ]
    return ["run", *changed, *known], table


def _results(run: RunSummary) -> dict[str, str]:
    """Return the results of one run: measured by `evaluate` if that was called, otherwise by the run itself."""
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
    """Return prompt and judge as text: rates can be compared only if it is the same."""
    judge = measured["judge"]
    accuracy = judge["accuracy"] and Accuracy(**judge["accuracy"])
    how_well = f"balanced accuracy {accuracy.balanced:.2f}" if accuracy else "not measured"
    return f"“{measured['prompt']}” by {judge['name']}, {how_well}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def main(argv: Sequence[str]) -> int:
    """Run the `compare` command. Returns: an exit code. Raises: UserError."""
    own, judging = _split(argv)
    known, rest = make_parser().parse_known_args(own)
    problems: list[str] = []
    options = validated(CompareOptions, vars(known), problems)
    refuse(problems)
    folders = _folders(options, rest, judging)
    runs = [read_run(folder) for folder in folders]
    if options.follow_parent:
        follow_parent()
    out = options.out or folders[0].parent / "compare.html"
    heads, table = rows(runs)
    write_page(runs, heads, table, out)
    result = [dict(zip(heads, row, strict=True)) for row in table]
    write_text(out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    lines = [" | ".join(row) for row in [heads, *table]]
    places = {"page": str(out), "picture": str(out.with_suffix(".png"))}
    EventWriter(is_on=options.events).answer([*lines, f"page: {out}"], "compare", **places)
    return errors.DONE


def _folders(options: CompareOptions, rest: Sequence[str], judging: Sequence[str]) -> list[Path]:
    """Return the folders of the runs, after training those of a sweep. Raises: UserError with fewer than two."""
    if options.sweep:
        folders = sweep(options.sweep, rest, judging)
    else:
        strays = [word for word in (*rest, *judging) if word.startswith("-")]
        if strays:
            raise UserError(f"{strays[0]}: options of the trainer go with --sweep")
        folders = [Path(word) for word in rest]
    if len(folders) < 2:
        raise UserError("name two runs or more, such as output/a output/b, or --sweep temperature=1,6")
    return folders


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `compare`. The names of runs, and the options of a sweep's trainings, are left to others."""
    return command_parser(
        "compare",
        CompareOptions,
        "One page that compares several runs; or train them first: --sweep FIELD=A,B,C with options of the trainer. "
        "After --, options of evaluate: each run of the sweep is then evaluated.",
        usage="%(prog)s RUN RUN … | --sweep FIELD=A,B [options of the trainer] [-- options of evaluate]",
    )


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before and after `--`."""
    words = list(argv)
    return (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])


def write_page(runs: Sequence[RunSummary], heads: Sequence[str], table: Sequence[Sequence[str]], out: Path) -> None:
    """Write the page, and the runs' curves as a PNG beside it. Args: heads, table: see `rows`."""
    draw_comparison(runs, out.with_suffix(".png"))
    names, *settings = zip(heads, *table, strict=True)  # one column for each run: fewer runs than settings
    html.save(
        out,
        "comparison.html",
        title=f"Comparison of {', '.join(run.name for run in runs)}",
        names=[run.name for run in runs],
        differing=differing(runs),
        best=_best(runs),
        head=("", *names[1:]),
        rows=settings,
        curves=_curves(runs),
        grids={run.name: grid for run in runs if (grid := _grid(run))},
    )


def _curves(runs: Sequence[RunSummary]) -> list[Chart]:
    """Return a chart for each of CURVES, with a curve for each run over the steps that any of them took."""
    x = sorted({step["step"] for run in runs for step in run.steps})

    def values(run: RunSummary, key: str) -> list[float]:
        known = dict(zip((step["step"] for step in run.steps), smooth(run.steps, key), strict=True))
        return [known.get(at, math.nan) for at in x]

    return [chart(title, "step", x, {run.name: values(run, key) for run in runs}) for key, title in CURVES.items()]


def _grid(run: RunSummary) -> Path | None:
    """Return the pictures after the training: those of `evaluate`, otherwise the run's own; None without any."""
    places = (run.folder.with_name(f"{run.name}-evaluate") / "after.png", run.folder / "samples" / "after.png")
    return next((path for path in places if path.is_file()), None)


def _best(runs: Sequence[RunSummary]) -> dict[str, Any] | None:
    """Return the highest rate and the runs that reach it; None unless every run has a rate by the same judge."""
    rates, judges = {}, set()
    for run in runs:
        measured = run.evaluation
        if "after" in measured:
            rates[run.name] = measured["after"]["rate"]
            judges.add(_judged(measured))
        elif "rate_after" in run.done:
            rates[run.name] = run.done["rate_after"]
            judges.add(f"“{run.settings['prompt']}” by the training")
    if len(rates) < len(runs) or len(judges) > 1:
        return None
    highest = max(rates.values())
    return {"rate": highest, "names": [name for name, rate in rates.items() if rate == highest]}
