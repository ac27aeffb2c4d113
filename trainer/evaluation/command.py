"""The command `evaluate`: does the LoRA really unlearn? Rates before and after, quality, drift, strengths, attacks.

All pictures are made and saved before they are classified: model and judge need not fit into memory at once.
"""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..builtin import BUILTIN
from ..common import errors
from ..common.events import EventWriter
from ..common.files import write_text
from ..common.interrupts import Progress, follow_parent
from ..data.folders import Sample
from ..data.images import PLAIN
from ..generation.lora_base import with_base_of_lora
from ..models import base_model, hub
from ..models.base_model import Base
from . import findings, report
from .findings import Findings
from .options import Options, read_options
from .pictures import PictureSets, make_pictures

Look = tuple[Callable[[Sequence[Path]], np.ndarray], str]  # image files -> features, and their name


def main(argv: Sequence[str]) -> int:
    """The `evaluate` command. Returns: an exit code. Raises: UserError."""
    argv, found_base = with_base_of_lora(argv)
    options = read_options(argv)
    if found_base:
        print(found_base, file=sys.stderr)
    base = Base(hub.resolve_model_path(options.base), options.vae, options.prediction_type)
    base_model.check(base, clip_skip=options.clip_skip)
    unlearned = (
        Base(hub.resolve_model_path(options.unlearned), options.vae, options.prediction_type)
        if options.unlearned
        else None
    )
    if unlearned:
        base_model.check(unlearned)
    if options.follow_parent:
        follow_parent()
    events = EventWriter(is_on=options.events)
    with events.watched("evaluate", unit="picture") as progress:
        found = evaluate(options, base, unlearned, progress)
    lines = [*found.lines, f"report: {found.page}"]
    places = {"report": str(found.page), "picture": str(found.grid)}
    events.answer(lines, "evaluate", **places, **found.numbers)
    return errors.DONE


def evaluate(options: Options, base: Base, unlearned: Base | None, progress: Progress) -> Findings:
    """Make the pictures, judge them, write evaluate.json and evaluate.html below options.out."""
    look = _features(options, base, progress)
    judge = _judge(options, look)  # before the pictures: a missing one is reported before the long work
    sets = make_pictures(options, base, unlearned, progress)
    verdicts: dict[int, np.ndarray] = {}

    def normal(paths: list[Path]) -> np.ndarray | None:
        """Classify pictures. Returns: [n] bool; each set is classified once."""
        if judge is None or (judge.accuracy and judge.accuracy.is_chance):
            return None
        if id(paths) not in verdicts:
            verdicts[id(paths)] = judge.is_normal(paths)
        return verdicts[id(paths)]

    numbers: dict[str, Any] = {"prompt": options.prompt, "n": options.n, "strength": options.strength}
    numbers["judge"] = judge and {"name": judge.name, "accuracy": judge.accuracy and asdict(judge.accuracy)}
    numbers |= findings.rates(normal(sets.before), normal(sets.after), judge)
    for kind, by_prompt in (("paraphrases", sets.paraphrases), ("named", sets.named)):
        numbers[kind] = {
            prompt: findings.rates(normal(before), normal(after), judge)
            for prompt, (before, after) in by_prompt.items()
        }
    numbers["quality"], why = _quality(options, sets, look)
    numbers["drift"] = _drift(options, base, sets, progress)
    numbers["strengths"] = findings.strengths(sets, normal)
    numbers["relearned"] = {
        kind: [{"steps": steps, **findings.share(normal(paths))} for steps, paths in looks]
        for kind, looks in sets.relearned.items()
    }
    numbers["inverted"] = {kind: findings.share(normal(paths)) for kind, paths in sets.inverted.items()}
    found = findings.describe(numbers, judge, why)
    found = report.write(options, sets, found)
    write_text(options.out / "evaluate.json", json.dumps(found.numbers, indent=1, ensure_ascii=False) + "\n")
    return found


def _judge(options: Options, look: Look) -> Any:
    """Return the requested judge, or the built-in one on the built-in model; None if there is none."""
    from ..metrics import judges

    if options.judge and options.judge.endswith(".onnx"):
        return judges.from_onnx(Path(options.judge), options.sensitive_labels, options.labeled)
    if options.judge:
        return judges.from_model(options.judge, options.sensitive_labels, options.labeled)
    if options.clip:
        assert options.normal_text and options.sensitive_text, "read_options asks for both"
        return judges.from_clip(options.clip, options.normal_text, options.sensitive_text, options.labeled)
    if options.labeled:
        return judges.from_labeled(options.labeled, look[0], seed=0)
    if options.base == BUILTIN:
        from ..metrics.digit_judge import DigitJudge

        return DigitJudge().as_judge()
    return None


def _features(options: Options, base: Base, progress: Progress) -> Look:
    """Return a function (image files -> features [n, d]) and the features' name; each set is computed once."""
    from ..audit import features
    from ..memory import devices

    known: dict[tuple[Path, ...], np.ndarray] = {}
    name = f"{Path(options.encoder).name}'s features" if options.encoder else "the base model's own features"
    if options.base == BUILTIN and not options.encoder and not options.labeled:
        from ..data.images import read_images
        from ..metrics.digit_judge import DigitJudge

        reader = DigitJudge()
        return lambda paths: reader.classify(read_images(paths))[1], "the built-in classifier's features"

    def look(paths: Sequence[Path]) -> np.ndarray:
        key = tuple(paths)
        if key not in known:
            if options.encoder:
                known[key] = features.encoder_features(
                    paths,
                    options.encoder,
                    resolution=options.resolution,
                    bucket=False,
                    device=devices.choose_device(options.device),
                    progress=progress,
                )
            else:
                images = _images(options, base, paths, progress)
                known[key] = features.unet_features(images)
                shutil.rmtree(images.cache.folder, ignore_errors=True)
        return known[key]

    return look, name


def _images(options: Options, base: Base, paths: Sequence[Path], progress: Progress) -> Any:
    from ..audit import features
    from ..data.latent_cache import LatentCache
    from ..memory import devices
    from ..memory.memory_plan import MemoryPlan

    device = devices.choose_device(options.device)
    precision = devices.choose_precision(options.precision, device)
    cache = LatentCache(base, options.out / "cache", options.resolution, bucket=False, device=device)
    samples = [Sample(path, "") for path in paths]
    return features.Images(cache, samples, MemoryPlan(precision, precision), progress)


def _quality(options: Options, sets: PictureSets, look: Look) -> tuple[dict[str, list], str | None]:
    """Measure distances of the pictures to real normal images. Returns: (by set, why something is missing)."""
    from ..data import images
    from ..memory import devices
    from ..metrics import image_quality

    compared = {"before": sets.before, "after": sets.after}
    if options.normal is None and not (options.base == BUILTIN and not options.labeled):
        return {}, "quality: name a folder of normal images (--normal) to measure distances to"
    if options.normal is None:
        from ..metrics.digit_judge import write_real_digits

        real = write_real_digits(options.out / "real")
    else:
        real = images.images_in(options.normal)
    found = image_quality.feature_distances(compared, real, *look)
    why = None if found else "quality: too few pictures or normal images for a distance"
    if options.normal is not None:
        on_gpu = devices.choose_device(options.device).type == "cuda"
        by_inception, reason = image_quality.inception_distances(compared, real, on_gpu=on_gpu)
        found = {k: [*by_inception.get(k, []), *found.get(k, [])] for k in compared}
        why = why or reason
    return {k: [asdict(d) for d in v] for k, v in found.items()}, why


def _drift(options: Options, base: Base, sets: PictureSets, progress: Progress) -> dict[str, dict[str, float]]:
    """Measure the drift of each retained prompt's pictures, at equal seeds."""
    from ..metrics import image_quality

    found = {}
    for prompt, (before, after) in sets.retained.items():
        images = _images(options, base, [*before, *after], progress)
        encoded = images.encoded("")
        latents = np.stack([encoded.latents(path, PLAIN).flatten().numpy() for path in (*before, *after)])
        shutil.rmtree(images.cache.folder, ignore_errors=True)
        found[prompt] = {
            "pixels": image_quality.pixel_drift(before, after),
            "latents": image_quality.latent_drift(latents[: len(before)], latents[len(before) :]),
        }
    return found
