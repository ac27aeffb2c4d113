"""The `bench` command: seconds and peak memory of a training step on the exact shape of Stable Diffusion 1.5.

Weights are random, which changes neither time nor memory. Each setting's line shows the seconds of a step by phase, and
its predicted and measured peak. With --yardstick, diffusers' plain LoRA recipe (U-Net, peft, AdamW; no PU) runs the
same number of samples in the same process, in pairs of alternating order; with --unsupervised, plain training does.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ..config.parser import DEVICE, Flag, Positive, Takes, command_parser, read_settings
from ..config.picture_options import Resolution
from ..config.train_config import option

if TYPE_CHECKING:  # --help must not wait for torch
    import torch

    from ..memory.memory_plan import MemoryPlan
    from .benchmark_steps import Step, Work

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "selective": {"checkpointing": 8},
    "whole": {"checkpointing": 99},
    "fp8": {"weights": "fp8"},
    "offload": {"offload": 99},
    "smallest": {"checkpointing": 99, "weights": "fp8", "offload": 99},
}


def paired_ratio(one: Step, two: Step, pairs: int) -> tuple[float, float]:
    """Measure how much longer `one` takes than `two`. Returns: (median ratio, upper end of its 95 % interval)."""
    order = random.Random(0)
    ratios = []
    for _ in range(pairs):
        if order.random() < 0.5:
            a, b = one().total, two().total
        else:
            b, a = two().total, one().total
        ratios.append(a / b)
    draws = [statistics.median(order.choices(ratios, k=pairs)) for _ in range(2000)]
    return statistics.median(ratios), sorted(draws)[int(0.95 * len(draws))]


def _ratio(one: Step, two: Step, repeat: int) -> tuple[float, float]:
    for step in (one, two):
        step()  # to warm up
    return paired_ratio(one, two, max(5, repeat))


def peak_mib(step: Step, device: torch.device) -> float | None:
    """Return the peak GPU memory of a step; None without CUDA, where only that of the whole process can be measured."""
    import torch

    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_reserved(device) / 2**20


def _names(value: Any) -> list[str]:
    found = value.split(",")
    if unknown := [name for name in found if name not in SETTINGS]:
        raise ValueError(f"no {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    return found


class BenchmarkOptions(BaseModel):
    """Which settings are timed, and on what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: Annotated[list[str], Takes("NAME,NAME"), BeforeValidator(_names)] = option(
        ["plain", "selective", "whole", "fp8", "smallest"],
        f"settings to time, of {', '.join(SETTINGS)} [plain,selective,whole,fp8,smallest]",
    )
    resolution: Resolution = option(512, "side of an image in pixels")
    micro_batch: Positive = option(1, "samples in the U-Net at once")
    samples: Positive = option(3, "samples in a step, a third of them sensitive")
    rank: Positive = option(16, "LoRA rank")
    repeat: Positive = option(3, "steps that are timed, after one to warm up")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "number format of the U-Net's arithmetic")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", pattern=DEVICE)
    yardstick: Flag = option(False, "compare 'plain' and 'whole' with diffusers' recipe")
    unsupervised: Flag = option(False, "compare the objective pu with plain training on as many samples")
    small: Flag = option(False, "a small U-Net of the same architecture, for a quick look")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `bench`."""
    formatter = argparse.RawDescriptionHelpFormatter
    return command_parser("bench", BenchmarkOptions, __doc__ or "", formatter_class=formatter)


def main(argv: Sequence[str]) -> int:
    """Run the `bench` command. Returns: exit code. Raises: UserError."""
    options = read_settings(argv, make_parser(), BenchmarkOptions, lambda options: [])
    from ..memory import devices
    from ..memory.memory_plan import MemoryPlan
    from .benchmark_steps import SMALL, UNET, Work

    devices.flush_denormals()
    device = devices.choose_device(options.device)
    precision = devices.choose_precision(options.precision, device)
    sensitive = max(1, options.samples // 3)
    unlabeled = max(1, options.samples - sensitive)
    unet = SMALL if options.small else UNET
    work = Work(unet, options.resolution, unlabeled, sensitive, options.rank, device)
    start = MemoryPlan(precision, precision, micro_batch=options.micro_batch)
    print(
        f"{device}, {precision}, {options.resolution} px, {options.samples} samples a step, {start.micro_batch} at once"
    )
    print(f"{'':<12}{'s/step':>9}{'forward':>9}{'backward':>9}{'optimizer':>10}{'predicted':>11}{'measured':>10}  MiB")
    for name in options.settings:
        _line(name, work, replace(start, **SETTINGS[name]), options.repeat)
    _print_ratios(options, work, start)
    return 0


def _print_ratios(options: BenchmarkOptions, work: Work, start: MemoryPlan) -> None:
    """Print how settings compare with each other and with diffusers' recipe, in pairs of alternating order."""
    from .benchmark_steps import ours, yardstick

    if {"selective", "whole"} <= set(options.settings):
        one, two = (ours(work, replace(start, **SETTINGS[name])) for name in ("selective", "whole"))
        ratio, upper = _ratio(one, two, options.repeat)
        print(f"selective: {ratio:.3f} of the time of whole (95 % upper bound {upper:.3f})")
    if options.unsupervised:
        ratio, upper = _ratio(ours(work, start), ours(work, start, "unsupervised"), options.repeat)
        print(f"pu: {ratio:.3f} of the time of unsupervised (95 % upper bound {upper:.3f})")
    if options.yardstick:
        for name in ("plain", "whole"):
            found = replace(start, **SETTINGS[name])
            ratio, upper = _ratio(ours(work, found), yardstick(work, found), options.repeat)
            print(f"{name}: {ratio:.3f} of the time of diffusers' recipe (95 % upper bound {upper:.3f})")


def _line(name: str, work: Work, found: MemoryPlan, repeat: int) -> None:
    """Time one setting and print its line."""
    from ..memory import devices, estimator
    from .benchmark_steps import ours

    shape = estimator.Shape(work.unet, work.rank, "adamw", work.px, work.px)
    predicted = estimator.predict(shape, found).total
    step = ours(work, found)
    step()
    steps = [step() for _ in range(repeat)]
    middle = {k: statistics.median(s.seconds[k] for s in steps) for k in steps[0].seconds}
    total = statistics.median(s.total for s in steps)
    measured = peak_mib(step, work.device)
    shown = "-" if measured is None else f"{measured + estimator.CONTEXT_MIB:.0f}"
    print(
        f"{name:<12}{total:9.2f}{middle['forward']:9.2f}{middle['backward']:9.2f}{middle['optimizer']:10.2f}"
        f"{predicted:11.0f}{shown:>10}",
        flush=True,
    )
    del step
    gc.collect()
    devices.reset_peak(work.device)
