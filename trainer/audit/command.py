"""The commands `audit` and `prior`: which unlabeled images are probably sensitive, and how many of them.

Neither trains a diffusion model: a classifier on the base model's features separates the two folders.
"""

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..builtin import CONFIG
from ..common import errors
from ..common.distributed import ONE
from ..common.errors import UserError
from ..common.events import EventWriter
from ..common.files import replacing, write_text
from ..common.interrupts import follow_parent
from ..config.arguments import Invocation, parse
from ..config.parser import command_parser, refuse, validated
from ..data import contact_sheet, inputs
from ..data.folders import Folders
from ..models import base_model, hub
from ..models.base_model import Base
from ..objective.class_prior import Prior
from ..reporting import html
from .auto_prior import describe, usable
from .ranking import AuditOptions, Ranking, near_duplicates, rank

SHOWN_PAIRS = 50  # near-duplicates on the page; audit.json lists all


@dataclass(frozen=True)
class Result:
    """What an audit found."""

    prior: Prior | None  # None where the score comes from a LoRA
    ranked: list[tuple[Path, float]]  # unlabeled images with their scores, the most probably sensitive first
    duplicates: list[tuple[Path, Path]]  # pairs of near-duplicates
    across: list[tuple[Path, Path]]  # those of them that lie in both folders: the commonest mistake


def main(argv: Sequence[str]) -> int:
    """Run the `audit` command. Returns: an exit code. Raises: UserError."""
    known, rest = make_parser().parse_known_args(argv)
    how = _options(vars(known))
    names = [f"--{name.replace('_', '-')}" for name in AuditOptions.model_fields]
    invocation = parse(rest, CONFIG, others=names)
    folders, ranking, folder = _ranked(invocation, how)
    found = _result(folders, ranking)
    _save(folder, found, how.top)
    notes = [*_describe(found, folder, how.top), *_act(found, how)]
    report = write_page(folder, found, how.top, notes)
    lines = [*(describe(found.prior) if found.prior else []), *_describe_across(found), *notes]
    prior = None if found.prior is None else usable(found.prior)
    places = {"sheet": str(folder / "audit.png"), "report": str(report)}
    EventWriter(is_on=invocation.events).answer([*lines, f"page: {report}"], "audit", prior=prior, **places)
    return errors.DONE


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that `audit` has beside those of a training."""
    return command_parser(
        "audit",
        AuditOptions,
        "Rank the unlabeled images by how likely they are sensitive, estimate the prior, and list near-duplicates. "
        "Needs the base model and the two folders; writes audit.csv, audit.png, audit.json and audit.html to "
        "OUTPUT/NAME-audit/.",
        usage="%(prog)s [--score …] [--top N] [--move-to DIR [--apply]] [--exclude FILE] [options of the trainer]",
        epilog="all options of the trainer: python -m trainer --help",
    )


def _options(given: dict[str, Any]) -> AuditOptions:
    """Return the command's own options. Raises: UserError listing every problem."""
    problems: list[str] = []
    how = validated(AuditOptions, given, problems)
    for score, value in (("encoder", how.encoder), ("lora", how.lora)):
        if (how.score == score) != (value is not None):
            problems.append(f"--score {score} and --{score} go together")
    if how.lora and not how.lora.is_file():
        problems.append(f"--lora: no file {how.lora}")
    if how.exclude and how.exclude.exists():
        problems.append(f"--exclude: {how.exclude} exists already and is not overwritten; name a new file")
    if how.apply and not how.move_to:
        problems.append("--apply: moves files to --move-to; name that folder")
    refuse(problems)
    return how


def _result(folders: Folders, ranking: Ranking) -> Result:
    order = np.argsort(-ranking.scores, kind="stable")
    ranked = [(ranking.unlabeled[i].path, float(ranking.scores[i])) for i in order]
    pairs = near_duplicates([s.path for s in (*folders.unlabeled, *folders.sensitive, *folders.held_out)])
    unlabeled = {s.path for s in folders.unlabeled}
    across = [(a, b) for a, b in pairs if (a in unlabeled) != (b in unlabeled)]
    return Result(ranking.prior, ranked, pairs, across)


def _save(folder: Path, found: Result, top: int) -> None:
    """Write audit.csv, audit.png and audit.json."""
    with replacing(folder / "audit.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        rows = [(i, f"{score:.6f}", path) for i, (path, score) in enumerate(found.ranked, 1)]
        csv.writer(file).writerows([("rank", "score", "image"), *rows])
    contact_sheet.save_ranked(found.ranked[:top], folder / "audit.png")
    result = {
        "prior": found.prior and asdict(found.prior),
        "ranked": [{"image": str(path), "score": score} for path, score in found.ranked],
        "near_duplicates": [[str(a), str(b)] for a, b in found.duplicates],
    }
    write_text(folder / "audit.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def write_page(folder: Path, found: Result, top: int, notes: Sequence[str]) -> Path:
    """Write audit.html. Returns: its path."""
    page = folder / "audit.html"
    html.save(
        page,
        "audit.html",
        title=f"Audit of {folder.name.removesuffix('-audit')}",
        prior=found.prior,
        warning=_doubt(found.prior) if found.prior else None,
        notes=notes,
        ranked=found.ranked,
        top=[(i, f"{score:.2f}", path) for i, (path, score) in enumerate(found.ranked[:top], 1)],
        sheet=folder / "audit.png",
        duplicates=sorted(found.duplicates, key=lambda pair: pair not in found.across)[:SHOWN_PAIRS],
        n_across=len(found.across),
    )
    return page


def _doubt(prior: Prior) -> str | None:
    """Return the sentence that says why the estimate is no better than a guess; None if it is better."""
    return None if prior.is_telling else describe(prior)[-1]


def prior_main(argv: Sequence[str]) -> int:
    """Run the `prior` command. Returns: an exit code. Raises: UserError."""
    invocation = parse(argv, CONFIG)
    _, ranking, folder = _ranked(invocation, AuditOptions())
    prior = ranking.prior
    assert prior is not None  # every score but a LoRA's comes with an estimate
    write_text(folder / "prior.json", json.dumps(asdict(prior), indent=1) + "\n")
    title = f"Prior of {folder.name.removesuffix('-audit')}"
    html.save(folder / "prior.html", "prior.html", title=title, prior=prior, warning=_doubt(prior))
    EventWriter(is_on=invocation.events).answer(describe(prior), "prior", **asdict(prior))
    return errors.DONE


def _ranked(invocation: Invocation, how: AuditOptions) -> tuple[Folders, Ranking, Path]:
    """Return the images, their ranking, and the folder of results. Raises: UserError."""
    config = inputs.with_digits(invocation.config, ONE) if invocation.is_builtin else invocation.config
    assert config.base is not None  # parse refuses folders without a model
    base = Base(hub.resolve_model_path(config.base), config.vae, config.prediction_type)
    base_model.check(base)
    folders = inputs.find(config.model_copy(update={"prompt": config.prompt or ""}))  # captions do not matter here
    if not folders.sensitive:
        raise UserError("--sensitive: name the folder of sensitive images")
    folder = config.output_dir / f"{config.name}-audit"
    if invocation.follow_parent:
        follow_parent()
    with EventWriter(is_on=invocation.events).watched("audit", unit="image") as progress:
        try:
            found = rank(config, base, folders, how, folder / "cache", progress)
        finally:
            if not config.keep_cache:
                shutil.rmtree(folder / "cache", ignore_errors=True)
    return folders, found, folder


def _describe_across(found: Result) -> list[str]:
    """Return the pairs across the two folders, the first ten of them in full."""
    lines = [f"in both folders: {a} = {b}" for a, b in found.across[:10]]
    if len(found.across) > 10:
        lines.append(f"… and {len(found.across) - 10} more in both folders, see audit.json")
    return lines


def _describe(found: Result, folder: Path, top: int) -> list[str]:
    shown = found.ranked[:top]
    return [
        f"near-duplicates: {len(found.duplicates)} pairs, {len(found.across)} of them across the two folders",
        f"most probably sensitive among the unlabeled: {', '.join(path.name for path, _ in shown[:8])}, …",
        f"all, ranked: {folder / 'audit.csv'}; the first {len(shown)}: {folder / 'audit.png'}",
    ]


def _act(found: Result, how: AuditOptions) -> list[str]:
    """Move or exclude the first images as the options say. Returns: what was done. Raises: UserError."""
    top = [path for path, _ in found.ranked[: how.top]]
    lines = []
    if how.move_to:
        lines.append(_move(top, how.move_to, really=how.apply))
    if how.exclude:
        write_text(how.exclude, "".join(f"{path}\n" for path in top))
        lines.append(f"named the first {len(top)} in {how.exclude}; train without them: --exclude {how.exclude}")
    return lines


def _move(paths: Sequence[Path], target: Path, *, really: bool) -> str:
    """Move images with their captions. Never deletes, never overwrites. Returns: what was or would be done."""
    files = [p for image in paths for p in (image, *(image.with_suffix(s) for s in (".txt", ".caption")))]
    found = [p for p in dict.fromkeys(files) if p.exists()]  # a.png and a.jpg share a.txt
    taken = [p.name for p in found if (target / p.name).exists()]
    if taken:
        raise UserError(
            f"--move-to: {target} has files of these names already ({', '.join(taken[:3])}); nothing was moved"
        )
    if not really:
        return f"would move {len(found)} files to {target}; look at the sheet, then add --apply"
    target.mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.move(path, target / path.name)
    return f"moved {len(found)} files to {target}"
