"""The `bench` command: seconds and peak memory of a training step on the exact shape of Stable Diffusion 1.5.

Weights are random, which changes neither time nor memory. Each setting's line shows what a step takes, by phase, beside
the predicted peak. With --yardstick, diffusers' plain LoRA recipe (U-Net, peft, AdamW; no PU) runs the same number of
samples in the same process, in pairs of alternating order.
"""

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import estimate, gradient, lora, memory, model, pu_loss, switches
from .dataset import Sample, View
from .denoise import Denoiser, Scale
from .diffusion import add_noise, alphas_cumprod, per_sample_error
from .draws import Draw
from .errors import UserError
from .switches import DTYPES, Switches

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
SMALL = {**UNET, "block_out_channels": [64, 128, 128, 128], "layers_per_block": 1}

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "selective": {"checkpointing": 8},
    "whole": {"checkpointing": 99},
    "fp8": {"weights": "fp8"},
    "offload": {"offload": 99},
    "smallest": {"checkpointing": 99, "weights": "fp8", "offload": 99},
}


@dataclass
class Phases:
    """Seconds of one step, by what they are spent on."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("forward", "backward", "optimizer"), 0.0))

    @contextmanager
    def measure(self, name: str, device: torch.device) -> Iterator[None]:
        _finish(device)
        started = time.perf_counter()
        yield
        _finish(device)
        self.seconds[name] += time.perf_counter() - started

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class InMemory:
    """Encoded images and captions that are only numbers."""

    latent: Tensor
    state: Tensor

    def latents(self, path: Path, view: View) -> Tensor:
        return self.latent

    def text(self, caption: str) -> Tensor:
        return self.state


@dataclass(frozen=True)
class Work:
    """What both sides do in a step."""

    unet: dict[str, Any]
    px: int
    n_unlabeled: int
    n_sensitive: int
    rank: int
    device: torch.device

    def model(self, dtype: torch.dtype) -> nn.Module:
        from diffusers import UNet2DConditionModel

        torch.manual_seed(0)
        with model.quiet():
            unet = UNet2DConditionModel.from_config(self.unet).to(dtype).requires_grad_(False).eval()
        lora.attach(unet, rank=self.rank, alpha=self.rank, seed=0)
        return unet

    def encoded(self) -> InMemory:
        side = self.px // 8
        return InMemory(torch.randn(4, side, side), torch.randn(77, self.unet["cross_attention_dim"]))


Step = Callable[[], Phases]


def ours(work: Work, found: Switches) -> Step:
    """A step of `pu` as training does it: denoiser, exact gradient, clipping, AdamW."""
    unet = work.model(found.load_dtype)
    switches.set_up(unet, found, device=work.device)
    parameters, dtype = lora.parameters(unet), DTYPES[found.precision]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    phases = [Phases()]

    def autocast() -> Any:
        return torch.autocast(work.device.type, dtype=dtype, enabled=dtype != torch.float32)

    signal = alphas_cumprod(0.00085, 0.012, 1000)
    denoiser = Denoiser(unet, dtype, work.encoded(), signal, "epsilon", 0, work.device, autocast, lambda: None)
    scale = Scale("per-timestep", 2.0, torch.full((20,), 1.0))
    weights = pu_loss.Weights("pu", 0.2, work.n_unlabeled, work.n_sensitive, 0)
    draws = [Draw(i, Sample(Path("x"), "x"), "x") for i in range(work.n_unlabeled + work.n_sensitive)]

    def losses_of(members: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        with phases[0].measure("forward", work.device):
            losses = scale.losses(*denoiser.errors(members, 0))
        return losses, torch.ones_like(losses)

    def backward(loss: Tensor) -> None:
        with phases[0].measure("backward", work.device):
            loss.backward()

    def step() -> Phases:
        phases[0] = Phases()
        gradient.accumulate(
            losses_of,
            draws[: work.n_unlabeled],
            draws[work.n_unlabeled :],
            parameters,
            weights,
            assumed_sign=1,
            micro_batch=found.micro_batch,
            backward=backward,
        )
        with phases[0].measure("optimizer", work.device):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return phases[0]

    return step


def yardstick(work: Work, found: Switches) -> Step:
    """The recipe of diffusers' LoRA example: plain peft layers, mean squared error, gradient accumulation."""
    dtype = DTYPES[found.precision]
    unet = work.model(dtype).to(work.device)
    if found.checkpointing:
        unet.enable_gradient_checkpointing()
    parameters = lora.parameters(unet)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    encoded, signal = work.encoded(), alphas_cumprod(0.00085, 0.012, 1000)
    n = work.n_unlabeled + work.n_sensitive

    def step() -> Phases:
        phases = Phases()
        for start in range(0, n, found.micro_batch):
            size = min(found.micro_batch, n - start)
            with phases.measure("forward", work.device):
                latents = encoded.latent.expand(size, -1, -1, -1)
                noise, t = torch.randn(latents.shape), torch.randint(1000, (size,))
                noisy = add_noise(latents, noise, t, signal).to(work.device, dtype)
                text = encoded.state.expand(size, -1, -1).to(work.device, dtype)
                with torch.autocast(work.device.type, dtype=dtype, enabled=dtype != torch.float32):
                    predicted = unet(noisy, t.to(work.device), text).sample
                loss = per_sample_error(predicted, noise.to(work.device)).mean() / noise[0].numel() * size / n
            with phases.measure("backward", work.device):
                loss.backward()
        with phases.measure("optimizer", work.device):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return phases

    return step


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
    memory.flush_denormals()
    device = memory.choose_device(options.device)
    precision = memory.choose_precision(options.precision, device)
    sensitive = max(1, options.samples // 3)
    work = Work(
        SMALL if options.small else UNET,
        options.resolution,
        max(1, options.samples - sensitive),
        sensitive,
        options.rank,
        device,
    )
    start = Switches(precision, precision, micro_batch=options.micro_batch)
    print(
        f"{device}, {precision}, {options.resolution} px, {options.samples} samples a step, {start.micro_batch} at once"
    )
    print(f"{'':<12}{'s/step':>9}{'forward':>9}{'backward':>9}{'optimizer':>10}{'predicted':>11}{'measured':>10}  MiB")
    for name in wanted:
        _line(name, work, replace(start, **SETTINGS[name]), options.repeat)
    if options.yardstick:
        for name in ("plain", "whole"):
            found = replace(start, **SETTINGS[name])
            pair = ours(work, found), yardstick(work, found)
            for step in pair:
                step()
            ratio, upper = paired_ratio(*pair, max(5, options.repeat))
            print(f"{name}: {ratio:.3f} of the time of diffusers' recipe (95 % upper bound {upper:.3f})")
    return 0


def _line(name: str, work: Work, found: Switches, repeat: int) -> None:
    shape = estimate.Shape(work.unet, work.rank, "adamw", work.px, work.px)
    predicted = estimate.predict(shape, found).total
    step = ours(work, found)
    step()
    steps = [step() for _ in range(repeat)]
    middle = {k: statistics.median(s.seconds[k] for s in steps) for k in steps[0].seconds}
    total = statistics.median(s.total for s in steps)
    measured = peak_mib(step, work.device)
    shown = "-" if measured is None else f"{measured + estimate.CONTEXT_MIB:.0f}"
    print(
        f"{name:<12}{total:9.2f}{middle['forward']:9.2f}{middle['backward']:9.2f}{middle['optimizer']:10.2f}"
        f"{predicted:11.0f}{shown:>10}",
        flush=True,
    )
    del step
    gc.collect()
