"""One run of a pixel-space experiment: the LoRA trainer's loop on another network, its pictures and their rates."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..audit import features
from ..builtin import digits
from ..common.distributed import ONE
from ..common.interrupts import Progress
from ..config.train_config import TrainConfig
from ..data.contact_sheet import save_grid
from ..data.folders import Folders, Sample
from ..data.images import images_in, read_images, save_images
from ..memory import devices
from ..memory.memory_plan import MemoryPlan
from ..metrics import image_quality, judges
from ..metrics.digit_judge import DigitJudge
from ..metrics.judges import Judge
from ..metrics.statistics import wilson
from ..models.networks import train_whole
from ..reporting.run_context import RunContext
from ..reporting.run_dir import RunDir
from ..training.denoiser import Denoiser
from ..training.learner import Learner
from ..training.training_loop import TrainingLoop
from . import datasets, pixels

SHOWN_PX = 48  # side of a picture in the grid for eyes; smaller ones are enlarged


def train(
    settings: dict[str, Any], objective: str, seed: int, folders: dict[str, Path], device: str, progress: Progress
) -> tuple[pixels.PixelUNet, int]:
    """Train on pixels with the LoRA trainer's loop. Returns: (the trained network, how often R changed its sign)."""
    prior = datasets.Counts(**settings["counts"]).prior
    own = {"objective": objective, "prior": prior, "seed": seed, "caption_dropout": 0}
    config = TrainConfig.model_validate({**settings["train"], **own})
    where = devices.choose_device(device)
    unet = pixels.build(settings["unet"], settings["fold"], seed=seed).to(where)
    network = train_whole(unet, is_from_scratch=isinstance(settings["unet"], dict))
    unlabeled, sensitive = ([Sample(p, "") for p in images_in(folders[kind])] for kind in ("unlabeled", "sensitive"))

    def check() -> None:
        progress(f"{objective}, seed {seed}", loop.progress.step, config.steps)

    # nothing is written by the loop itself, so its folder is never made
    context = RunContext(where, ONE, RunDir(config.output_dir, config.name), emit=_no_events, check=check)
    learner = Learner(config, network, "fp32", context)
    schedule = pixels.NoiseSettings(**settings["noise"]).schedule()
    autocast = learner.accelerator.autocast
    denoiser = Denoiser(unet, torch.float32, pixels.Pixels(), schedule, config.seed, where, autocast, before=check)
    plan = MemoryPlan("fp32", "fp32", micro_batch=config.batch_unlabeled + config.batch_sensitive)
    loop = TrainingLoop(
        config, Folders(unlabeled, sensitive, held_out=[], skipped=[]), learner, denoiser, plan, context
    )
    loop.prepare()
    for _ in loop.steps():
        pass
    return unet.eval(), loop.progress.sign_flips


def _no_events(event: str, **fields: Any) -> None:
    """Drop a warning of the optimizer's: the settings of an experiment name one that is always there."""


def make_pictures(settings: dict[str, Any], unet: pixels.PixelUNet, seed: int, folder: Path) -> list[Path]:
    """Write PNGs in folder, and a grid of the first beside it. Every objective starts from the same noise."""
    seeds = list(range(10_000 * (seed + 1), 10_000 * (seed + 1) + settings["pictures"]))
    channels = unet.unet.config.in_channels // settings["fold"] ** 2
    shape = (channels, settings["size_px"], settings["size_px"])
    images = pixels.pictures(
        unet, pixels.NoiseSettings(**settings["noise"]), seeds, shape, steps=settings["sampler_steps"]
    )
    paths = save_images(images[..., 0] if channels == 1 else images, folder, seeds)
    zoom = max(1, SHOWN_PX // settings["size_px"])
    save_grid(read_images(paths[:64]).repeat(zoom, 1).repeat(zoom, 2), folder.with_suffix(".png"))
    return paths


def measure(
    settings: dict[str, Any], paths: list[Path], folders: dict[str, Path], device: str, progress: Progress
) -> dict[str, Any]:
    """Measure the non-sensitive rate (none where the judge only guesses), and the Fréchet distance to real normal
    images that nothing was trained on."""
    judge, look, name = _judge(settings, folders, device, progress)
    found: dict[str, Any] = {}
    assert judge.accuracy is not None, "measured on folders['labeled']"
    if not judge.accuracy.is_chance:
        normal = judge.is_normal(paths)
        low, high = wilson(int(normal.sum()), len(normal))
        found = {"rate": float(normal.mean()), "low": low, "high": high, "n": len(normal)}
    distances = image_quality.feature_distances({"": paths}, images_in(folders["normal"]), look, name)
    if distances:
        found |= {"frechet": distances[""][0].value, "distance": distances[""][0].name}
    return {**found, "judge": f"{judge.name}, {judge.accuracy.describe()}"}


def _judge(
    settings: dict[str, Any], folders: dict[str, Path], device: str, progress: Progress
) -> tuple[Judge, Callable[[Sequence[Path]], np.ndarray], str]:
    """Return the judge, the features for distances, and their name."""
    if settings["judge"] == "digits":
        reader = DigitJudge()
        judge = judges.make_judge(
            "the built-in digit classifier",
            lambda paths: np.isin(reader.classify(enlarged(paths))[0], settings["normal"]),
            folders["labeled"],
        )
        return judge, lambda paths: reader.classify(enlarged(paths))[1], "the digit classifier's features"

    def look(paths: Sequence[Path]) -> np.ndarray:
        return features.encoder_features(
            paths,
            settings["judge"],
            resolution=settings["size_px"],
            bucket=False,
            device=devices.choose_device(device),
            progress=progress,
        )

    judge = judges.from_labeled(folders["labeled"], look, seed=0)
    return judge, look, f"{Path(settings['judge']).name}'s features"


def enlarged(paths: Sequence[Path]) -> np.ndarray:
    """Enlarge digits to the classifier's size. Returns: [n, 64, 64, 3] uint8."""
    images = []
    for path in paths:
        with Image.open(path) as image:
            size = (digits.SIZE_PX, digits.SIZE_PX)
            images.append(np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC).convert("RGB")))
    return np.stack(images)
