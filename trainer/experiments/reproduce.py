"""`python -m trainer reproduce NAME`: the paper's experiments, each a settings file beside this one.

The same objectives, gradient and loop as the LoRA trainer; the network is trained whole, from scratch or from a
pretrained DDPM, on pixels. Every objective sees the same data and the same seeds.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ..common import errors
from ..common.errors import UserError
from ..common.events import EventWriter
from ..common.files import write_text
from ..common.interrupts import Progress
from ..config.arguments import tomllib
from ..config.parser import DEVICE, Takes, command_parser, read_argv, refuse, validated
from ..config.train_config import option
from ..reporting import html

SETTINGS = Path(__file__).parent / "settings"
OBJECTIVES = ("unsupervised", "supervised", "pu")


@dataclass(frozen=True)
class Experiment:
    """One settings file, at one scale."""

    name: str
    settings: dict[str, Any]


def names() -> list[str]:
    """Return the names of all experiments."""
    return sorted(path.stem for path in SETTINGS.glob("*.toml"))


def read(name: str, scale: str) -> Experiment:
    """Return an experiment.

    Args: scale: "paper", or "small": the same with the values of the file's [small] table.
    Raises: UserError if there is no such experiment, or it has no small scale.
    """
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
    """Return a file's settings, merged over those of the experiment that its entry `like` names."""
    own = tomllib.loads((SETTINGS / f"{name}.toml").read_text(encoding="utf-8"))
    return _over(_settings(own.pop("like")), own) if "like" in own else own


def _over(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with the changes; tables are merged entry by entry."""
    tables = {k: _over(settings[k], v) for k, v in changes.items() if isinstance(v, dict) and k in settings}
    return {**settings, **changes, **tables}


def _numbers(value: Any) -> list[int]:
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise ValueError("must be like 0,1,2") from None


def _objectives(value: Any) -> list[str]:
    found = value.split(",")
    if not set(found) <= set(OBJECTIVES):
        raise ValueError(f"must be of {', '.join(OBJECTIVES)}")
    return found


class ReproduceOptions(BaseModel):
    """Which experiment, at which scale, and where its files lie."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Literal["paper", "small"] = option("paper", "small: takes minutes on a CPU, with the built-in digits")
    seeds: Annotated[list[int], Takes("N,N"), BeforeValidator(_numbers)] = option([0, 1, 2], "such as 0,1,2 [0,1,2]")
    objectives: Annotated[list[str], Takes("NAME,NAME"), BeforeValidator(_objectives)] = option(
        list(OBJECTIVES), f"objectives to compare [{','.join(OBJECTIVES)}]"
    )
    steps: int | None = option(None, "number of steps [the experiment's]")
    datasets: Path = option(Path("datasets"), "where torchvision keeps its files")
    out: Path = option(Path("output/reproduce"), "folder of results")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", pattern=DEVICE)


def main(argv: Sequence[str]) -> int:
    """Run the `reproduce` command. Returns: an exit code. Raises: UserError."""
    name, options = read_options(argv)
    experiment = read(name, options.scale)
    if "commands" in experiment.settings:
        from .run_commands import run_all

        _refuse_options(name, options)
        return run_all(experiment.settings["commands"], options.out / name)
    out = options.out / f"{name}-{options.scale}"
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


def read_options(argv: Sequence[str]) -> tuple[str, ReproduceOptions]:
    """Return the name of the experiment and the options. Raises: UserError listing every problem."""
    problems: list[str] = []
    given = read_argv(argv, make_parser(), problems)
    name = given.pop("name", "")
    options = validated(ReproduceOptions, given, problems)
    refuse(problems)
    return name, options


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `reproduce`."""
    description = "The experiments of Takahashi et al. 2025: " + ", ".join(names())
    parser = command_parser("reproduce", ReproduceOptions, description)
    parser.add_argument("name", help="which experiment")
    return parser


def _refuse_options(name: str, options: ReproduceOptions) -> None:
    """Raises: UserError if an option is given that an experiment made of commands does not use."""
    defaults = ReproduceOptions()
    refuse(
        [
            f"--{option}: not for {name}, whose settings are the commands in its file"
            for option in ("seeds", "objectives", "steps", "device")
            if getattr(options, option) != getattr(defaults, option)
        ]
    )


def run(
    experiment: Experiment, objective: str, seed: int, out: Path, options: ReproduceOptions, progress: Progress
) -> dict[str, Any]:
    """Train once, make pictures, measure. Returns: what the table needs, read from its JSON file if that exists."""
    from . import datasets, pixel_run

    target = out / f"{objective}-seed{seed}.json"
    steps = {"steps": options.steps} if options.steps else {}
    settings = {**experiment.settings, "train": {**experiment.settings["train"], **steps}}
    recipe = {"settings": settings, "objective": objective, "seed": seed}
    if target.exists() and (kept := json.loads(target.read_text(encoding="utf-8")))["recipe"] == recipe:
        return kept
    counts = datasets.Counts(**settings["counts"])
    drawn = datasets.Selection(
        counts=counts, **{k: settings[k] for k in ("normal", "sensitive", "size_px", "versions")}
    )
    folders = datasets.write_folders(settings["dataset"], options.datasets, out / "data", drawn)
    started = time.perf_counter()
    unet, flips = pixel_run.train(settings, objective, seed, folders, options.device, progress)
    found = {"recipe": recipe, "objective": objective, "seed": seed, "sign_flips": flips}
    found["train_s"] = round(time.perf_counter() - started)
    paths = pixel_run.make_pictures(settings, unet, seed, out / f"{objective}-seed{seed}")
    found |= pixel_run.measure(settings, paths, folders, options.device, progress)
    write_text(target, json.dumps(found, indent=1) + "\n")
    return found


def table(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of a table as in the paper: the mean over the seeds, the worst in brackets."""
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
    """Write reproduce.html. Args: found: of `run`. heads, rows: of `table`."""
    html.save(
        out / "reproduce.html",
        "reproduction.html",
        title=f"Experiment {experiment.name}",
        rates=_mean_rates(found),
        head=heads,
        rows=rows,
        judge=found[0]["judge"],
        distance=found[0].get("distance"),
        runs=[(f["objective"], f["seed"], *_rate(f)) for f in found],
        grids={f"{f['objective']}, seed {f['seed']}": out / f"{f['objective']}-seed{f['seed']}.png" for f in found},
        settings=json.dumps(found[0]["recipe"]["settings"], indent=1),  # as they ran, --steps included
    )


def _mean_rates(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean rate of each objective, the highest first; empty if the judge gave none."""
    rates: dict[str, list[float]] = {}
    for f in found:
        if "rate" in f:
            rates.setdefault(f["objective"], []).append(f["rate"])
    return dict(sorted(((name, mean(values)) for name, values in rates.items()), key=lambda pair: -pair[1]))


def _rate(found: dict[str, Any]) -> tuple[str, str]:
    if "rate" not in found:
        return "", ""
    return html.percent(found["rate"]), f"{html.percent(found['low'])} to {html.percent(found['high'])}"
