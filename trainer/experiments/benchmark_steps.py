"""The two steps that `bench` compares: ours, and that of diffusers' LoRA example, on the same samples."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.third_party import quiet
from ..data.folders import Sample
from ..data.images import View
from ..data.sampler import TrainingSample
from ..memory import memory_plan
from ..memory.memory_plan import DTYPES, MemoryPlan
from ..models.networks import LoraNetwork, attach_lora
from ..models.noise_schedule import NoiseSchedule, alphas_cumprod, per_sample_error
from ..objective import pu_loss, step_gradient
from ..objective.temperature import LossScale
from ..training.denoiser import Denoiser

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


@dataclass
class Phases:
    """Seconds of one step, by phase."""

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
    """Random tensors in place of encoded images and captions."""

    latent: Tensor
    state: Tensor

    def latents(self, path: Path, view: View) -> Tensor:
        return self.latent

    def text(self, caption: str) -> Tensor:
        return self.state


@dataclass(frozen=True)
class Work:
    """What both kinds of step have in common: network, resolution, samples, rank, device."""

    unet: dict[str, Any]
    px: int
    n_unlabeled: int
    n_sensitive: int
    rank: int
    device: torch.device
    bases: dict[torch.dtype, nn.Module] = field(default_factory=dict)

    def model(self, dtype: torch.dtype) -> Any:
        """Make a U-Net with its own LoRA. On the CPU frozen weights are shared: a copy costs a percent of time."""
        from diffusers import UNet2DConditionModel

        if dtype not in self.bases:
            torch.manual_seed(0)
            with quiet():
                found = UNet2DConditionModel.from_config(self.unet).to(dtype).requires_grad_(False).eval()
            self.bases[dtype] = found
        base = self.bases[dtype]
        shared = base.parameters() if self.device.type == "cpu" else ()
        unet = copy.deepcopy(base, {id(parameter): parameter for parameter in shared})
        attach_lora(unet, rank=self.rank, alpha=self.rank, seed=0)
        return unet

    def encoded(self) -> InMemory:
        side = self.px // 8
        return InMemory(torch.randn(4, side, side), torch.randn(77, self.unet["cross_attention_dim"]))


Step = Callable[[], Phases]


def ours(work: Work, found: MemoryPlan, objective: str = "pu") -> Step:
    """Make a step as training does it: denoiser, exact gradient, clipping, AdamW."""
    unet = work.model(found.load_dtype)
    memory_plan.apply_plan(unet, found, device=work.device)
    parameters, dtype = LoraNetwork(unet).parameters, DTYPES[found.precision]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    phases = [Phases()]

    def autocast() -> Any:
        return torch.autocast(work.device.type, dtype=dtype, enabled=dtype != torch.float32)

    schedule = NoiseSchedule(alphas_cumprod(0.00085, 0.012, 1000))
    denoiser = Denoiser(unet, dtype, work.encoded(), schedule, 0, work.device, autocast, before=lambda: None)
    scale = LossScale("per-timestep", 2.0, torch.full((20,), 1.0))
    n = work.n_unlabeled + work.n_sensitive
    n_unlabeled = n if objective == "unsupervised" else work.n_unlabeled
    weights = pu_loss.Weights(objective, 0.2, n_unlabeled, n - n_unlabeled)
    draws = [TrainingSample(i, Sample(Path("x"), "x"), "x") for i in range(n)]

    def losses_of(members: Sequence[TrainingSample]) -> tuple[Tensor, Tensor]:
        with phases[0].measure("forward", work.device):
            losses = scale.losses(*denoiser.errors(members, 0))
        return losses, torch.ones_like(losses)

    def backward(loss: Tensor) -> None:
        with phases[0].measure("backward", work.device):
            loss.backward()

    def step() -> Phases:
        phases[0] = Phases()
        step_gradient.accumulate(
            losses_of,
            draws[:n_unlabeled],
            draws[n_unlabeled:],
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


def yardstick(work: Work, found: MemoryPlan) -> Step:
    """Make a step of diffusers' LoRA example: plain peft layers, mean squared error, gradient accumulation."""
    dtype = DTYPES[found.precision]
    unet = work.model(dtype).to(work.device)
    if found.checkpointing:
        unet.enable_gradient_checkpointing()
    parameters = LoraNetwork(unet).parameters
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    encoded, schedule = work.encoded(), NoiseSchedule(alphas_cumprod(0.00085, 0.012, 1000))
    n = work.n_unlabeled + work.n_sensitive

    def step() -> Phases:
        phases = Phases()
        for start in range(0, n, found.micro_batch):
            size = min(found.micro_batch, n - start)
            with phases.measure("forward", work.device):
                latents = encoded.latent.expand(size, -1, -1, -1)
                noise, t = torch.randn(latents.shape), torch.randint(1000, (size,))
                noisy = schedule.add_noise(latents, noise, t).to(work.device, dtype)
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
