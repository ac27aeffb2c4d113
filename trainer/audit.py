"""The commands `audit` and `prior`: which unlabeled images are probably sensitive, and how many of them.

Neither trains a diffusion model: the base model's features tell the two folders apart as far as they can be told.
"""

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import data, errors, hub, mixture, model, page, sheet
from .builtin import CONFIG
from .command_line import Invocation, parse
from .config import TrainConfig
from .console import Progress, answer, watched
from .dataset import Folders, Sample
from .duplicates import near_duplicates
from .errors import UserError
from .files import replacing, write_text
from .mixture import Prior
from .model import Base
from .prior import told, usable
from .ranks import ONE
from .stopping import follow_parent

SCORES = ("unet", "encoder", "lora")


@dataclass(frozen=True)
class How:
    """What images are scored by, and what is done with the result: the command's own options."""

    score: str = "unet"
    encoder: str | None = None
    lora: Path | None = None
    top: int = 48
    move_to: Path | None = None
    exclude: Path | None = None
    apply: bool = False


@dataclass(frozen=True)
class Examined:
    """Higher scores are more probably sensitive. By features: each from a classifier that had not seen the image."""

    unlabeled: list[Sample]  # as the folder has them
    scores: np.ndarray  # [unlabeled]
    prior: Prior | None  # None where the score comes from a LoRA: it was trained on the sensitive images


def examine(config: TrainConfig, base: Base, folders: Folders, how: How, cache: Path, progress: Progress) -> Examined:
    """Score the unlabeled images. Raises: UserError with too few images."""
    from . import features, memory  # what imports torch comes after every complaint about options
    from .switches import Switches

    device = memory.choose_device(config.device)
    precision = memory.choose_precision(config.precision, device)
    switches, n = Switches(precision, precision), len(folders.unlabeled)
    samples = folders.unlabeled if how.score == "lora" else [*folders.unlabeled, *folders.sensitive, *folders.held_out]
    images = features.Images(base, samples, config.resolution, config.bucket, cache, device, switches, progress)
    if how.score == "lora":
        return Examined(folders.unlabeled, features.error_rises(images, how.lora, config.prompt or ""), None)
    if how.score == "encoder":
        paths, more = [sample.path for sample in samples], {"device": device, "progress": progress}
        shape = {"resolution": config.resolution, "bucket": config.bucket}
        values = features.encoder_features(paths, how.encoder, **shape, **more)
    else:
        values = features.unet_features(images)
    is_sensitive = np.arange(len(samples)) >= n
    try:
        scores = mixture.cross_fit(values, is_sensitive, seed=config.seed)
    except ValueError as error:
        raise UserError(f"--unlabeled and --sensitive: {error}") from None
    return Examined(folders.unlabeled, scores[:n], mixture.estimate(scores, is_sensitive, seed=config.seed))


def main(argv: Sequence[str]) -> int:
    """The `audit` command. Returns: an exit code."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
        return errors.DONE
    how, rest = _read(argv)
    invocation = parse(rest, CONFIG, others=[f"--{name.replace('_', '-')}" for name in vars(how)])
    folders, found, folder = _examined(invocation, how)
    order = np.argsort(-found.scores, kind="stable")
    ranked = [(found.unlabeled[i].path, float(found.scores[i])) for i in order]
    top = [path for path, _ in ranked[: how.top]]
    pairs = near_duplicates([s.path for s in (*folders.unlabeled, *folders.sensitive, *folders.held_out)])
    _save(folder, found.prior, ranked, pairs, how.top)
    lines = [*(told(found.prior) if found.prior else []), *_told_duplicates(pairs, folders)]
    lines.append(f"most probably sensitive among the unlabeled: {', '.join(p.name for p in top[:8])}, …")
    lines.append(f"all, ranked: {folder / 'audit.csv'}; the first {len(top)}: {folder / 'audit.png'}")
    if how.move_to:
        lines.append(_move(top, how.move_to, really=how.apply))
    if how.exclude:
        write_text(how.exclude, "".join(f"{path}\n" for path in top))
        lines.append(f"named the first {len(top)} in {how.exclude}; train without them: --exclude {how.exclude}")
    report = folder / "audit.html"
    parts = [*map(page.says, lines), page.heading("Most probably sensitive"), page.picture(folder / "audit.png")]
    page.save(report, f"Audit of {folder.name.removesuffix('-audit')}", parts)
    prior = None if found.prior is None else usable(found.prior)
    places = {"sheet": str(folder / "audit.png"), "report": str(report)}
    answer([*lines, f"page: {report}"], events=invocation.events, event="audit", prior=prior, **places)
    return errors.DONE


def _read(argv: Sequence[str]) -> tuple[How, list[str]]:
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
    return How(**{**values, "top": int(values.get("top", How.top))}), rest


def _save(
    folder: Path, prior: Prior | None, ranked: list[tuple[Path, float]], pairs: list[tuple[Path, Path]], top: int
) -> None:
    with replacing(folder / "audit.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        rows = [(i, f"{score:.6f}", path) for i, (path, score) in enumerate(ranked, 1)]
        csv.writer(file).writerows([("rank", "score", "image"), *rows])
    sheet.save_ranked(ranked[:top], folder / "audit.png")
    result = {
        "prior": prior and asdict(prior),
        "ranked": [{"image": str(path), "score": score} for path, score in ranked],
        "near_duplicates": [[str(a), str(b)] for a, b in pairs],
    }
    write_text(folder / "audit.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def prior_main(argv: Sequence[str]) -> int:
    """The `prior` command. Returns: an exit code."""
    invocation = parse(argv, CONFIG)
    _, found, folder = _examined(invocation, How())
    write_text(folder / "prior.json", json.dumps(asdict(found.prior), indent=1) + "\n")
    lines = told(found.prior)
    page.save(folder / "prior.html", f"Prior of {folder.name.removesuffix('-audit')}", map(page.says, lines))
    answer(lines, events=invocation.events, event="prior", **asdict(found.prior))
    return errors.DONE


def _examined(invocation: Invocation, how: How) -> tuple[Folders, Examined, Path]:
    config = data.with_digits(invocation.config, ONE) if invocation.is_builtin else invocation.config
    base = Base(hub.find(config.base), config.vae, config.prediction_type)
    model.check(base)
    folders = data.find(config.model_copy(update={"prompt": config.prompt or ""}))  # captions do not matter here
    if not folders.sensitive:
        raise UserError("--sensitive: name the folder of sensitive images")
    folder = config.output_dir / f"{config.name}-audit"
    if invocation.follow_parent:
        follow_parent()
    with watched("audit", unit="image", events=invocation.events) as progress:
        try:
            found = examine(config, base, folders, how, folder / "cache", progress)
        finally:
            if not config.keep_cache:
                shutil.rmtree(folder / "cache", ignore_errors=True)
    return folders, found, folder


def _told_duplicates(pairs: Sequence[tuple[Path, Path]], folders: Folders) -> list[str]:
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
