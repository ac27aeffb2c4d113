"""The commands `audit` and `prior`: which unlabeled images are probably sensitive, and how many of them.

Neither trains a diffusion model: the base model's features tell the two folders apart as far as they can be told.
"""

import argparse
import csv
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import data, errors, hub, mixture, model, sheet
from .builtin import CONFIG
from .command_line import Invocation, parse
from .config import TrainConfig
from .dataset import Folders, Sample
from .duplicates import near_duplicates
from .errors import UserError
from .files import replacing, write_text
from .mixture import Prior
from .model import Base
from .ranks import ONE
from .stopping import stoppable

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Examined:
    """Scores are probabilities of being labeled sensitive, each from a classifier that had not seen the image."""

    unlabeled: list[Sample]  # as the folder has them
    scores: np.ndarray  # [unlabeled]
    prior: Prior


def examine(config: TrainConfig, base: Base, folders: Folders, cache: Path, progress: Progress) -> Examined:
    """Score the unlabeled images. Raises: UserError with too few images."""
    from . import memory  # what imports torch comes after every complaint about options
    from .features import features
    from .switches import DTYPES

    sensitive = [*folders.sensitive, *folders.held_out]
    samples = [*folders.unlabeled, *sensitive]
    device = memory.choose_device(config.device)
    values = features(
        base,
        samples,
        resolution=config.resolution,
        bucket=config.bucket,
        cache=cache,
        device=device,
        dtype=DTYPES[memory.choose_precision(config.precision, device)],
        progress=progress,
    )
    is_sensitive = np.arange(len(samples)) >= len(folders.unlabeled)
    try:
        scores = mixture.cross_fit(values, is_sensitive, seed=config.seed)
    except ValueError as error:
        raise UserError(f"--unlabeled and --sensitive: {error}") from None
    prior = mixture.estimate(scores, is_sensitive, seed=config.seed)
    return Examined(folders.unlabeled, scores[: len(folders.unlabeled)], prior)


def told(prior: Prior) -> list[str]:
    """The estimate in words, with what it is worth."""
    lines = [
        f"prior: {prior.value:.2f} (95 % interval {prior.low:.2f} to {prior.high:.2f}, best-bin estimation), from "
        f"{prior.n_unlabeled} unlabeled and {prior.n_sensitive} sensitive images",
        f"cross-check by Elkan and Noto, which tends to be too high: {prior.elkan_noto:.2f}",
    ]
    if not prior.is_telling:
        lines.append(
            f"Too few images to tell: for any data, the estimate may be off by {prior.bound:.2f}. "
            "A guess such as 0.2 is as good; a larger prior unlearns harder."
        )
    return lines


def main(argv: Sequence[str]) -> int:
    """The `audit` command. Returns: an exit code."""
    if {"-h", "--help"} & set(argv):
        print(HELP)
        return errors.DONE
    parser = argparse.ArgumentParser(prog="python -m trainer audit", add_help=False, allow_abbrev=False)
    parser.add_argument("--top", type=int, default=48)
    parser.add_argument("--move-to", type=Path)
    parser.add_argument("--apply", action="store_true")
    own, rest = parser.parse_known_args(argv)
    if own.top < 1:
        raise UserError(f"--top: must be 1 or more, got {own.top}")
    if own.apply and not own.move_to:
        raise UserError("--apply: says that --move-to is meant; name its folder")
    folders, found, folder = _examined(parse(rest, CONFIG))
    order = np.argsort(-found.scores, kind="stable")
    ranked = [(found.unlabeled[i].path, float(found.scores[i])) for i in order]
    top = ranked[: own.top]
    pairs = near_duplicates([s.path for s in (*folders.unlabeled, *folders.sensitive, *folders.held_out)])
    with replacing(folder / "audit.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("rank", "score", "image"), *((i, f"{s:.6f}", p) for i, (p, s) in enumerate(ranked, 1))]
        )
    sheet.save_ranked(top, folder / "audit.png")
    result = {
        "prior": asdict(found.prior),
        "ranked": [{"image": str(path), "score": score} for path, score in ranked],
        "near_duplicates": [[str(a), str(b)] for a, b in pairs],
    }
    write_text(folder / "audit.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print("\n".join([*told(found.prior), *_told_duplicates(pairs, folders)]))
    print(f"most probably sensitive among the unlabeled: {', '.join(p.name for p, _ in top[:8])}, …")
    print(f"all, ranked: {folder / 'audit.csv'}; the first {len(top)}: {folder / 'audit.png'}")
    if own.move_to:
        _move([path for path, _ in top], own.move_to, really=own.apply)
    return errors.DONE


def prior_main(argv: Sequence[str]) -> int:
    """The `prior` command. Returns: an exit code."""
    _, found, folder = _examined(parse(argv, CONFIG))
    write_text(folder / "prior.json", json.dumps(asdict(found.prior), indent=1) + "\n")
    print("\n".join(told(found.prior)))
    return errors.DONE


def _examined(invocation: Invocation) -> tuple[Folders, Examined, Path]:
    config = data.with_digits(invocation.config, ONE) if invocation.is_builtin else invocation.config
    base = Base(hub.find(config.base), config.vae, config.prediction_type)
    model.check(base)
    folders = data.find(config.model_copy(update={"prompt": config.prompt or ""}))  # captions do not matter here
    if not folders.sensitive:
        raise UserError("--sensitive: name the folder of sensitive images")
    folder = config.output_dir / f"{config.name}-audit"
    with stoppable() as check, tqdm(unit="image", dynamic_ncols=True) as bar:

        def progress(what: str, done: int, of: int) -> None:
            check()
            bar.desc, bar.total, bar.n = what, of, done
            bar.refresh()

        try:
            found = examine(config, base, folders, folder / "cache", progress)
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


def _move(paths: Sequence[Path], target: Path, *, really: bool) -> None:
    """Move images with their captions. Never deletes, never overwrites."""
    found = [p for image in paths for p in (image, *(image.with_suffix(s) for s in (".txt", ".caption"))) if p.exists()]
    taken = [p.name for p in found if (target / p.name).exists()]
    if taken:
        raise UserError(
            f"--move-to: {target} has files of these names already ({', '.join(taken[:3])}); nothing was moved"
        )
    if not really:
        print(f"would move {len(found)} files to {target}; look at the sheet, then say --apply")
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.move(path, target / path.name)
    print(f"moved {len(found)} files to {target}")


HELP = """usage: python -m trainer audit [--top N] [--move-to DIR [--apply]] [options of the trainer]

Ranks the unlabeled images by how likely they are sensitive, estimates the prior, and names near-duplicates.
Needs the base model and the two folders; writes audit.csv, audit.png and audit.json to OUTPUT/NAME-audit/.

  --top N        how many to show, and to move [48]
  --move-to DIR  say which files would be moved there
  --apply        move them"""
