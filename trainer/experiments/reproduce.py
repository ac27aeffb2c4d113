"""`python -m trainer reproduce NAME`: the paper's experiments, each a settings file beside this one.

The same objectives, gradient and loop as the LoRA trainer; the network is trained whole, from scratch or from a
pretrained DDPM, on pixels. Every objective sees the same data and the same seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from ..common import errors
from ..common.errors import UserError
from ..common.events import EventWriter
from ..common.files import write_text
from ..common.interrupts import Progress
from ..config.arguments import tomllib
from ..reporting import html

SETTINGS = Path(__file__).parent / "settings"
OBJECTIVES = ("unsupervised", "supervised", "pu")


@dataclass(frozen=True)
class Experiment:
    """One settings file, at one scale."""

    name: str
    settings: dict[str, Any]


def names() -> list[str]:
    return sorted(path.stem for path in SETTINGS.glob("*.toml"))


def read(name: str, scale: str) -> Experiment:
    """Args: scale: "paper", or "small": the same with the values of the file's [small] table. Raises: UserError."""
    if name not in names():
        raise UserError(f"{name}: no such experiment; there are {', '.join(names())}")
    settings = _settings(name)
    small = settings.pop("small", None)
    if scale == "small":
        if small is None:
            having = [other for other in names() if "small" in _settings(other)]
            raise UserError(f"{name}: has no small scale; {', '.join(having)} have one")
        settings = _over(settings, small)
    return Experiment(name, settings)


def _settings(name: str) -> dict[str, Any]:
    """One file's settings, over those of the experiment that it is `like`."""
    own = tomllib.loads((SETTINGS / f"{name}.toml").read_text(encoding="utf-8"))
    return _over(_settings(own.pop("like")), own) if "like" in own else own


def _over(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes win, tables entry by entry."""
    tables = {k: _over(settings[k], v) for k, v in changes.items() if isinstance(v, dict) and k in settings}
    return {**settings, **changes, **tables}


def main(argv: Sequence[str]) -> int:
    """The `reproduce` command. Returns: an exit code. Raises: UserError."""
    parser = make_parser()
    options = parser.parse_args(argv)
    experiment = read(options.name, options.scale)
    if "commands" in experiment.settings:
        for name in ("seeds", "objectives", "steps", "device"):
            if getattr(options, name) != parser.get_default(name):
                raise UserError(f"--{name}: not for {options.name}, whose settings are the commands in its file")
        from .run_commands import run_all

        return run_all(experiment.settings["commands"], options.out / options.name)
    out = options.out / f"{options.name}-{options.scale}"
    events = EventWriter(is_on=False)
    with events.watched("reproduce", unit="step") as progress:
        found = [
            run(experiment, objective, seed, out, options, progress)
            for seed in options.seeds
            for objective in options.objectives
        ]
    heads, rows = table(found)
    report(experiment, found, heads, rows, out)
    lines = ["| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows]]
    events.answer([*lines, f"judge: {found[0]['judge']}", f"page: {out / 'reproduce.html'}"], "reproduce")
    return errors.DONE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer reproduce",
        description="The experiments of Takahashi et al. 2025: " + ", ".join(names()),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", help="which one")
    add("--scale", choices=("paper", "small"), default="paper", help="small: minutes on a CPU, with what ships")
    add("--seeds", type=_numbers, default=[0, 1, 2], help="such as 0,1,2 [0,1,2]")
    add("--objectives", type=_objectives, default=list(OBJECTIVES), help=f"[{','.join(OBJECTIVES)}]")
    add("--steps", type=int, help="another number of steps than the experiment's")
    add("--datasets", type=Path, default=Path("datasets"), help="where torchvision keeps its files [datasets]")
    add("--out", type=Path, default=Path("output/reproduce"), help="folder of results [output/reproduce]")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")
    return parser


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like 0,1,2, got {text!r}") from None


def _objectives(text: str) -> list[str]:
    found = text.split(",")
    if not set(found) <= set(OBJECTIVES):
        raise argparse.ArgumentTypeError(f"must be of {', '.join(OBJECTIVES)}, got {text!r}")
    return found


def run(
    experiment: Experiment, objective: str, seed: int, out: Path, options: argparse.Namespace, progress: Progress
) -> dict[str, Any]:
    """Train once, make pictures, measure. Returns: what the table needs, kept as JSON: nothing is done twice."""
    from . import datasets, pixel_run

    target = out / f"{objective}-seed{seed}.json"
    steps = {"steps": options.steps} if options.steps else {}
    settings = {**experiment.settings, "train": {**experiment.settings["train"], **steps}}
    recipe = {"settings": settings, "objective": objective, "seed": seed}
    if target.exists() and (kept := json.loads(target.read_text(encoding="utf-8")))["recipe"] == recipe:
        return kept
    folders = datasets.write_folders(
        settings["dataset"],
        options.datasets,
        out / "data",
        normal=settings["normal"],
        sensitive=settings["sensitive"],
        counts=datasets.Counts(**settings["counts"]),
        size_px=settings["size_px"],
        versions=settings["versions"],
    )
    started = time.perf_counter()
    unet, flips = pixel_run.train(settings, objective, seed, folders, options.device, progress)
    found = {"recipe": recipe, "objective": objective, "seed": seed, "sign_flips": flips}
    found["train_s"] = round(time.perf_counter() - started)
    paths = pixel_run.make_pictures(settings, unet, seed, out / f"{objective}-seed{seed}")
    found |= pixel_run.measure(settings, paths, folders, options.device, progress)
    write_text(target, json.dumps(found, indent=1) + "\n")
    return found


def table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The paper's kind of table: mean over the seeds, the worst in brackets."""
    heads = ["objective", "non-sensitive rate (lowest)", "Fréchet distance (highest)", "seeds", "training"]
    rows = []
    for objective in dict.fromkeys(f["objective"] for f in found):
        group = [f for f in found if f["objective"] == objective]
        rates = [f["rate"] for f in group if "rate" in f]
        distances = [f["frechet"] for f in group if "frechet" in f]
        distance = f"{mean(distances):.1f} ({max(distances):.1f})" if distances else ""
        time_s = f"{mean(f['train_s'] for f in group):.0f} s"
        rate = f"{mean(rates):.3f} ({min(rates):.3f})" if rates else ""
        rows.append([objective, rate, distance, str(len(group)), time_s])
    return heads, rows


def report(
    experiment: Experiment, found: Sequence[dict[str, Any]], heads: list[str], rows: list[list[str]], out: Path
) -> None:
    parts = [html.table(heads, rows), html.says(f"Judge: {found[0]['judge']}.")]
    parts += [html.says(f["distance"]) for f in found[:1] if "distance" in f]
    shown = ["" if "rate" not in f else f"{f['rate']:.3f} ({f['low']:.3f} to {f['high']:.3f})" for f in found]
    every = [(f["objective"], f["seed"], rate) for f, rate in zip(found, shown, strict=True)]
    parts += [html.heading("Each run"), html.table(("objective", "seed", "non-sensitive rate"), every)]
    grids = [(out / f"{f['objective']}-seed{f['seed']}.png", f) for f in found]
    parts.append(html.pair(html.picture(path, f"{f['objective']}, seed {f['seed']}") for path, f in grids))
    parts += [html.heading("Settings"), html.code(json.dumps(experiment.settings, indent=1))]
    html.save(out / "reproduce.html", f"{experiment.name}, the same data and seeds for every objective", parts)
