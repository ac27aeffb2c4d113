"""The commands `audit` and `prior`: which unlabeled images are probably sensitive, and how many of them.

Neither trains a diffusion model: the base model's features tell the two folders apart as far as they can be told.
"""

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..builtin import CONFIG
from ..common import errors
from ..common.distributed import ONE
from ..common.errors import UserError
from ..common.events import EventWriter
from ..common.files import replacing, write_text
from ..common.interrupts import follow_parent
from ..config.arguments import Invocation, parse
from ..data import contact_sheet, inputs
from ..data.folders import Folders
from ..models import base_model, hub
from ..models.base_model import Base
from ..objective.class_prior import Prior
from ..reporting import html
from .auto_prior import describe, usable
from .ranking import SCORES, AuditOptions, Ranking, near_duplicates, rank


def main(argv: Sequence[str]) -> int:
    """The `audit` command. Returns: an exit code."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
        return errors.DONE
    how, rest = _read(argv)
    invocation = parse(rest, CONFIG, others=[f"--{name.replace('_', '-')}" for name in vars(how)])
    folders, found, folder = _ranked(invocation, how)
    order = np.argsort(-found.scores, kind="stable")
    ranked = [(found.unlabeled[i].path, float(found.scores[i])) for i in order]
    top = [path for path, _ in ranked[: how.top]]
    pairs = near_duplicates([s.path for s in (*folders.unlabeled, *folders.sensitive, *folders.held_out)])
    _save(folder, found.prior, ranked, pairs, how.top)
    lines = [*(describe(found.prior) if found.prior else []), *_describe_duplicates(pairs, folders)]
    lines.append(f"most probably sensitive among the unlabeled: {', '.join(p.name for p in top[:8])}, …")
    lines.append(f"all, ranked: {folder / 'audit.csv'}; the first {len(top)}: {folder / 'audit.png'}")
    if how.move_to:
        lines.append(_move(top, how.move_to, really=how.apply))
    if how.exclude:
        write_text(how.exclude, "".join(f"{path}\n" for path in top))
        lines.append(f"named the first {len(top)} in {how.exclude}; train without them: --exclude {how.exclude}")
    report = folder / "audit.html"
    parts = [*map(html.says, lines), html.heading("Most probably sensitive"), html.picture(folder / "audit.png")]
    html.save(report, f"Audit of {folder.name.removesuffix('-audit')}", parts)
    prior = None if found.prior is None else usable(found.prior)
    places = {"sheet": str(folder / "audit.png"), "report": str(report)}
    EventWriter(is_on=invocation.events).answer([*lines, f"page: {report}"], "audit", prior=prior, **places)
    return errors.DONE


def _read(argv: Sequence[str]) -> tuple[AuditOptions, list[str]]:
    """The command's own options, and the rest. Raises: UserError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    kinds = {"score": str, "encoder": str, "lora": Path, "top": str, "move-to": Path, "exclude": Path}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    parser.add_argument("--apply", action="store_true")
    given, rest = parser.parse_known_args(argv)
    values = vars(given)
    problems = []
    if values.get("score", "unet") not in SCORES:
        problems.append(f"--score: must be one of {', '.join(SCORES)}, got {values['score']!r}")
    for score, option in (("encoder", "encoder"), ("lora", "lora")):
        if (values.get("score") == score) != (option in values):
            problems.append(f"--score {score} and --{option} go together")
    if "lora" in values and not values["lora"].is_file():
        problems.append(f"--lora: no file {values['lora']}")
    if not values.get("top", "1").isdigit() or not int(values.get("top", "1")):
        problems.append(f"--top: must be a whole number from 1, got {values['top']!r}")
    if "exclude" in values and values["exclude"].exists():
        problems.append(f"--exclude: {values['exclude']} is there already; this command writes it, and overwrites none")
    if values["apply"] and "move_to" not in values:
        problems.append("--apply: says that --move-to is meant; name its folder")
    if problems:
        raise UserError("\n".join(problems))
    return AuditOptions(**{**values, "top": int(values.get("top", AuditOptions.top))}), rest


def _save(
    folder: Path, prior: Prior | None, ranked: list[tuple[Path, float]], pairs: list[tuple[Path, Path]], top: int
) -> None:
    with replacing(folder / "audit.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        rows = [(i, f"{score:.6f}", path) for i, (path, score) in enumerate(ranked, 1)]
        csv.writer(file).writerows([("rank", "score", "image"), *rows])
    contact_sheet.save_ranked(ranked[:top], folder / "audit.png")
    result = {
        "prior": prior and asdict(prior),
        "ranked": [{"image": str(path), "score": score} for path, score in ranked],
        "near_duplicates": [[str(a), str(b)] for a, b in pairs],
    }
    write_text(folder / "audit.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def prior_main(argv: Sequence[str]) -> int:
    """The `prior` command. Returns: an exit code."""
    invocation = parse(argv, CONFIG)
    _, found, folder = _ranked(invocation, AuditOptions())
    write_text(folder / "prior.json", json.dumps(asdict(found.prior), indent=1) + "\n")
    lines = describe(found.prior)
    html.save(folder / "prior.html", f"Prior of {folder.name.removesuffix('-audit')}", map(html.says, lines))
    EventWriter(is_on=invocation.events).answer(lines, "prior", **asdict(found.prior))
    return errors.DONE


def _ranked(invocation: Invocation, how: AuditOptions) -> tuple[Folders, Ranking, Path]:
    config = inputs.with_digits(invocation.config, ONE) if invocation.is_builtin else invocation.config
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


def _describe_duplicates(pairs: Sequence[tuple[Path, Path]], folders: Folders) -> list[str]:
    """Copies of sensitive images among the unlabeled first: the commonest mistake."""
    unlabeled = {s.path for s in folders.unlabeled}
    across = [(a, b) for a, b in pairs if (a in unlabeled) != (b in unlabeled)]
    lines = [f"in both folders: {a} = {b}" for a, b in across[:10]]
    if len(across) > 10:
        lines.append(f"… and {len(across) - 10} more in both folders, see audit.json")
    return [*lines, f"near-duplicates: {len(pairs)} pairs, {len(across)} of them across the two folders"]


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
        return f"would move {len(found)} files to {target}; look at the sheet, then say --apply"
    target.mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.move(path, target / path.name)
    return f"moved {len(found)} files to {target}"


HELP = """usage: python -m trainer audit [--score …] [--top N] [--move-to DIR [--apply]] [options of the trainer]

Ranks the unlabeled images by how likely they are sensitive, estimates the prior, and names near-duplicates.
Needs the base model and the two folders; writes audit.csv, audit.png and audit.json to OUTPUT/NAME-audit/.

  --score unet          by the base model's own features (the default)
  --score encoder --encoder DIR   by those of an image encoder of transformers, such as CLIP: a folder or hub id
  --score lora --lora FILE        after training: by how much the LoRA raised the model's error
  --top N        how many to show, and to move [48]
  --move-to DIR  say which files would be moved there
  --apply        move them
  --exclude FILE name them in a text file instead, which training understands: --exclude FILE"""
