"""The `bench` command: seconds and peak memory of a training step on the exact shape of Stable Diffusion 1.5.

Weights are random, which changes neither time nor memory. Each setting's line shows what a step takes, by phase, beside
the predicted peak. With --yardstick, diffusers' plain LoRA recipe (U-Net, peft, AdamW; no PU) runs the same number of
samples in the same process, in pairs of alternating order.
"""

import argparse
import gc
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..common.errors import UserError
from ..memory import devices, estimator
from ..memory.memory_plan import MemoryPlan
from .benchmark_steps import SMALL, UNET, Step, Work, ours, yardstick

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "selective": {"checkpointing": 8},
    "whole": {"checkpointing": 99},
    "fp8": {"weights": "fp8"},
    "offload": {"offload": 99},
    "smallest": {"checkpointing": 99, "weights": "fp8", "offload": 99},
}


def paired_ratio(one: Step, two: Step, pairs: int) -> tuple[float, float]:
    """How much longer `one` takes than `two`. Returns: (median of the ratios, upper end of its 95 % interval)."""
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


def _compared(one: Step, two: Step, repeat: int) -> tuple[float, float]:
    for step in (one, two):
        step()  # to warm up
    return paired_ratio(one, two, max(5, repeat))


def peak_mib(step: Step, device: torch.device) -> float | None:
    """Most memory of the card during a step; None off CUDA, where only the whole process could be seen."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_reserved(device) / 2**20


def main(argv: Sequence[str]) -> int:
    """The `bench` command. Returns: exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", default="plain,selective,whole,fp8,smallest", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--resolution", type=int, default=512, help="pixels [512]")
    parser.add_argument("--micro-batch", type=int, default=1, help="samples at once [1]")
    parser.add_argument("--samples", type=int, default=3, help="samples in a step, a third of them sensitive [3]")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank [16]")
    parser.add_argument("--repeat", type=int, default=3, help="steps after one to warm up [3]")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--yardstick", action="store_true", help="compare 'plain' and 'whole' with diffusers' recipe")
    parser.add_argument("--small", action="store_true", help="a small U-Net of the same architecture, for a quick look")
    options = parser.parse_args(argv)
    wanted = options.settings.split(",")
    if unknown := [name for name in wanted if name not in SETTINGS]:
        raise UserError(f"--settings: no {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    devices.flush_denormals()
    device = devices.choose_device(options.device)
    precision = devices.choose_precision(options.precision, device)
    sensitive = max(1, options.samples // 3)
    work = Work(
        SMALL if options.small else UNET,
        options.resolution,
        max(1, options.samples - sensitive),
        sensitive,
        options.rank,
        device,
    )
    start = MemoryPlan(precision, precision, micro_batch=options.micro_batch)
    print(
        f"{device}, {precision}, {options.resolution} px, {options.samples} samples a step, {start.micro_batch} at once"
    )
    print(f"{'':<12}{'s/step':>9}{'forward':>9}{'backward':>9}{'optimizer':>10}{'predicted':>11}{'measured':>10}  MiB")
    for name in wanted:
        _line(name, work, replace(start, **SETTINGS[name]), options.repeat)
    if {"selective", "whole"} <= set(wanted):
        one, two = (ours(work, replace(start, **SETTINGS[name])) for name in ("selective", "whole"))
        ratio, upper = _compared(one, two, options.repeat)
        print(f"selective: {ratio:.3f} of the time of whole (95 % upper bound {upper:.3f})")
    if options.yardstick:
        for name in ("plain", "whole"):
            found = replace(start, **SETTINGS[name])
            ratio, upper = _compared(ours(work, found), yardstick(work, found), options.repeat)
            print(f"{name}: {ratio:.3f} of the time of diffusers' recipe (95 % upper bound {upper:.3f})")
    return 0


def _line(name: str, work: Work, found: MemoryPlan, repeat: int) -> None:
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
