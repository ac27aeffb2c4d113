"""The commands `audit` and `prior`: which unlabeled images are probably sensitive, and how many of them.

Neither trains a diffusion model: a classifier on the base model's features separates the two folders.
"""

import argparse
import csv
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
from ..common.wording import counted
from ..config.arguments import Invocation, parse
from ..config.parser import command_parser, refuse, validated
from ..config.train_config import folders_of
from ..data import contact_sheet, inputs
from ..data.folders import Folders, Sample
from ..models import base_model, hub
from ..models.base_model import Base
from ..objective.class_prior import Prior
from ..reporting import html
from . import certificate, moving
from .auto_prior import describe, usable
from .duplicates import near_duplicates
from .ranking import AuditOptions, Ranking, rank

UNCOVERED = "a group that should go, but has a low score, is not covered by the examples: add some of it to them"
SHOWN_PAIRS = 50  # near-duplicates on the page; audit.json lists all


@dataclass(frozen=True)
class Examination:
    """The images of a run, ranked."""

    folders: Folders
    ranking: Ranking
    source: Path  # the unlabeled folder
    out: Path  # the folder of results


@dataclass(frozen=True)
class Result:
    """What an audit reports."""

    prior: Prior | None  # None where the score comes from a LoRA
    ranked: list[tuple[Path, float]]  # unlabeled images with their scores, the most probably sensitive first
    duplicates: list[tuple[Path, Path]]  # pairs of near-duplicates
    across: list[tuple[Path, Path]]  # the pairs of which one image is unlabeled and one sensitive
    groups: list[tuple[float, list[Sample]]] = field(default_factory=list)  # (mean score, alike images), highest first


def main(argv: Sequence[str]) -> int:
    """Run the `audit` command. Returns: an exit code. Raises: UserError."""
    known, rest = make_parser().parse_known_args(argv)
    options = _options(vars(known))
    names = [f"--{name.replace('_', '-')}" for name in AuditOptions.model_fields]
    invocation = parse(rest, CONFIG, others=names)
    events = EventWriter(is_on=invocation.events)
    if options.undo:
        events.answer([moving.undo(options.undo)], "audit")
        return errors.DONE
    examined = _examine(invocation, options)
    result, out = _result(examined), examined.out
    _save(out, result, options.top)
    notes = [*_describe(result, out, options.top), *_act(result, examined, options)]
    report = write_page(out, result, options.top, notes)
    lines = [*(describe(result.prior) if result.prior else []), *_describe_across(result), *notes]
    prior = None if result.prior is None else usable(result.prior)
    places = {"sheet": str(out / "audit.png"), "report": str(report)}
    events.answer([*lines, f"page: {report}"], "audit", prior=prior, **places)
    return errors.DONE


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that `audit` has beside those of a training."""
    return command_parser(
        "audit",
        AuditOptions,
        "Rank the unlabeled images by how likely they are sensitive, estimate the prior, and list near-duplicates. "
        "Needs the base model and the two folders; writes audit.csv, audit.png, audit.json and audit.html to "
        "OUTPUT/NAME-audit/.",
        usage="%(prog)s [--score …] [--top N] [--move-to DIR [--apply]] [--exclude FILE] [options of a training]\n"
        "       %(prog)s --undo DIR",
        epilog="all options of a training: python -m trainer --help",
    )


def _options(given: dict[str, Any]) -> AuditOptions:
    """Return the command's own options. Raises: UserError listing every problem."""
    problems: list[str] = []
    options = validated(AuditOptions, given, problems)
    for score, value in (("encoder", options.encoder), ("lora", options.lora)):
        if (options.score == score) != (value is not None):
            problems.append(f"--score {score} and --{score} go together")
    if options.lora and not options.lora.is_file():
        problems.append(f"--lora: no file {options.lora}")
    if options.exclude and options.exclude.exists():
        problems.append(f"--exclude: {options.exclude} exists already and is not overwritten; name a new file")
    if options.apply and not options.move_to:
        problems.append("--apply: moves files to --move-to; name that folder")
    if options.keep_at_most and not (options.move_to or options.exclude):
        problems.append("--keep-at-most: says how many images --move-to or --exclude takes; name one of them")
    if options.keep_at_most and ("top" in options.model_fields_set or options.lora):
        problems.append("--keep-at-most: needs the score of the folders' own images, and takes the place of --top")
    if options.undo and (options.move_to or options.exclude):
        problems.append("--undo: only moves images back; leave out --move-to and --exclude")
    refuse(problems)
    return options


def _result(examined: Examination) -> Result:
    folders, ranking = examined.folders, examined.ranking
    order = np.argsort(-ranking.scores, kind="stable")
    ranked = [(ranking.unlabeled[i].path, float(ranking.scores[i])) for i in order]
    pairs = near_duplicates([s.path for s in (*folders.unlabeled, *folders.sensitive, *folders.held_out)])
    unlabeled = {s.path for s in folders.unlabeled}
    across = [(a, b) for a, b in pairs if (a in unlabeled) != (b in unlabeled)]
    return Result(ranking.prior, ranked, pairs, across, _groups(ranking))


def _groups(ranking: Ranking) -> list[tuple[float, list[Sample]]]:
    found = [] if ranking.groups is None else [np.flatnonzero(ranking.groups == g) for g in set(ranking.groups)]
    scored = [(float(ranking.scores[members].mean()), [ranking.unlabeled[i] for i in members]) for members in found]
    return sorted(scored, key=lambda group: group[0], reverse=True)


def _save(folder: Path, result: Result, top: int) -> None:
    """Write audit.csv, audit.png and audit.json."""
    with replacing(folder / "audit.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        rows = [(i, f"{score:.6f}", str(path)) for i, (path, score) in enumerate(result.ranked, 1)]
        csv.writer(file).writerows([("rank", "score", "image"), *rows])
    contact_sheet.save_ranked(result.ranked[:top], folder / "audit.png")
    if result.groups:
        named = {f"group {i}, mean score {s:.2f}": members for i, (s, members) in enumerate(result.groups, 1)}
        contact_sheet.save_groups(named, folder / "audit-groups.png")
    content = {
        "prior": result.prior and asdict(result.prior),
        "ranked": [{"image": str(path), "score": score} for path, score in result.ranked],
        "groups": [{"score": s, "images": [str(m.path) for m in members]} for s, members in result.groups],
        "near_duplicates": [[str(a), str(b)] for a, b in result.duplicates],
    }
    write_text(folder / "audit.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_page(folder: Path, result: Result, top: int, notes: Sequence[str]) -> Path:
    """Write audit.html. Args: notes: sentences about the results. Returns: the page's path."""
    page = folder / "audit.html"
    html.save(
        page,
        "audit.html",
        title=f"Audit of {folder.name.removesuffix('-audit')}",
        prior=result.prior,
        warning=_doubt(result.prior) if result.prior else None,
        notes=notes,
        ranked=result.ranked,
        top=[(i, f"{score:.2f}", path) for i, (path, score) in enumerate(result.ranked[:top], 1)],
        sheet=folder / "audit.png",
        groups=folder / "audit-groups.png" if result.groups else None,
        duplicates=sorted(result.duplicates, key=lambda pair: pair not in result.across)[:SHOWN_PAIRS],
        n_across=len(result.across),
    )
    return page


def _doubt(prior: Prior) -> str | None:
    """Return the sentence that says why the estimate is no better than a guess; None if it is better."""
    return None if prior.is_telling else describe(prior)[-1]


def prior_main(argv: Sequence[str]) -> int:
    """Run the `prior` command. Returns: an exit code. Raises: UserError."""
    invocation = parse(argv, CONFIG)
    examined = _examine(invocation, AuditOptions())
    prior, folder = examined.ranking.prior, examined.out
    assert prior is not None  # every score but a LoRA's comes with an estimate
    write_text(folder / "prior.json", json.dumps(asdict(prior), indent=1) + "\n")
    title = f"Prior of {folder.name.removesuffix('-audit')}"
    html.save(folder / "prior.html", "prior.html", title=title, prior=prior, warning=_doubt(prior))
    EventWriter(is_on=invocation.events).answer(describe(prior), "prior", **asdict(prior))
    return errors.DONE


def _examine(invocation: Invocation, options: AuditOptions) -> Examination:
    """Read the folders and rank the unlabeled images. Raises: UserError."""
    config = inputs.with_digits(invocation.config, ONE) if invocation.is_builtin else invocation.config
    assert config.base is not None  # parse refuses folders without a model
    base = Base(hub.resolve_model_path(config.base), config.vae, config.prediction_type)
    base_model.check(base)
    folders = inputs.find(config.model_copy(update={"prompt": config.prompt or ""}))  # captions do not matter here
    if not folders.sensitive:
        raise UserError("--sensitive: name the folder of sensitive images")
    source = folders_of(config)["unlabeled"]
    assert source is not None  # or no images were found
    _refuse_target(options.move_to, source)
    folder = config.output_dir / f"{config.name}-audit"
    if invocation.follow_parent:
        follow_parent()
    with EventWriter(is_on=invocation.events).watched("audit", unit="image") as progress:
        try:
            ranking = rank(config, base, folders, options, folder / "cache", progress)
        finally:
            if not config.keep_cache:
                shutil.rmtree(folder / "cache", ignore_errors=True)
    return Examination(folders, ranking, source, folder)


def _refuse_target(target: Path | None, source: Path) -> None:
    """Raises: UserError if images were moved into the unlabeled folder itself, or below it."""
    if target and target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--move-to: {target} lies in the unlabeled folder {source}; name a folder outside")


def _describe_across(result: Result) -> list[str]:
    """Describe the first ten pairs across the two folders, one line each, and count the rest."""
    lines = [f"in both folders: {a} = {b}" for a, b in result.across[:10]]
    if len(result.across) > 10:
        lines.append(f"… and {len(result.across) - 10} more in both folders, see audit.json")
    return lines


def _describe(result: Result, folder: Path, top: int) -> list[str]:
    """Describe the ranking and where its files are."""
    first, pairs = result.ranked[:top], counted(len(result.duplicates), "pair")
    return [
        f"near-duplicates: {pairs}, {len(result.across)} of them across the two folders",
        f"most probably sensitive among the unlabeled: {', '.join(path.name for path, _ in first[:8])}, …",
        *([f"kinds of unlabeled images: {folder / 'audit-groups.png'}; {UNCOVERED}"] if result.groups else []),
        f"all images, ranked: {folder / 'audit.csv'}; the first {len(first)} as pictures: {folder / 'audit.png'}",
    ]


def _act(result: Result, examined: Examination, options: AuditOptions) -> list[str]:
    """Move or exclude the first images as the options say. Returns: what was done. Raises: UserError."""
    if not (options.move_to or options.exclude):
        return []
    count, lines = _count(result, examined, options)
    first = [path for path, _ in result.ranked[:count]]
    if options.move_to:
        lines.append(moving.move(first, examined.source, options.move_to, apply=options.apply))
    if options.exclude:
        write_text(options.exclude, "".join(f"{path}\n" for path in first))
        lines.append(
            f"wrote the names of {counted(count, 'image')}; to train without them: --exclude {options.exclude}"
        )
    return lines


def _count(result: Result, examined: Examination, options: AuditOptions) -> tuple[int, list[str]]:
    """Decide how many of the first images to move or exclude.

    That is what --keep-at-most takes, or --top, or no more than the estimate's upper end.

    Returns: (the number, what to tell about it).
    Raises: UserError where nothing says how many.
    """
    if options.keep_at_most:
        return _count_for_promise(examined.ranking, options.keep_at_most)
    prior, n = result.prior, len(result.ranked)
    most = math.floor(prior.high * n) if prior and prior.is_telling else None
    if "top" in options.model_fields_set:
        count = min(options.top, n)
        if most is None or count <= most:
            return count, []
        are = counted(count, "image is", "images are")
        return count, [f"{are} more than the estimate's upper end, {most} of {n}"]
    if most is None:
        why = "a LoRA's score comes without an estimate" if prior is None else "the images are too few for an estimate"
        raise UserError(
            f"--top: say how many images to move or exclude ({why} of how many are sensitive). "
            f"Look at {examined.out / 'audit.png'} first; nothing was moved or excluded"
        )
    count = min(options.top, most)
    return count, [
        f"the first {count}: the estimate's upper end is {most} of {counted(n, 'image')}; --top takes another number"
    ]


def _count_for_promise(ranking: Ranking, at_most: float) -> tuple[int, list[str]]:
    scores, examples = ranking.scores, ranking.examples
    count = certificate.count_to_leave_out(scores, examples, at_most)
    line = (
        f"leaves out {count} of {counted(len(scores), 'image')}: of the hidden sensitive images, at most {at_most:g} "
        f"are expected among the {len(scores) - count} that stay, if they resemble the {len(examples)} examples"
    )
    return count, [line]
