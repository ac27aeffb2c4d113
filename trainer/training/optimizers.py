"""The optimizer, its learning rate over the steps, and accelerate around both."""

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..common.errors import UserError
from ..config.train_config import TrainConfig


def make_accelerator(precision: str, device: torch.device, *, is_alone: bool) -> Any:
    """Make accelerate's autocast, fp16 scaling and clipping on one device.

    Args: is_alone: the only process; several keep the state with which they found each other.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    mixed = {"fp32": "no"}.get(precision, precision)
    if not is_alone:
        return Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the last run of this process
    before = os.environ.get("ACCELERATE_TORCH_DEVICE")
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)  # the only way to tell it cuda:1
    try:
        return Accelerator(mixed_precision=mixed, cpu=device.type == "cpu")
    finally:
        if before is None:
            del os.environ["ACCELERATE_TORCH_DEVICE"]
        else:
            os.environ["ACCELERATE_TORCH_DEVICE"] = before


def make_optimizer(
    name: str, parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float, warn: Callable[[str], None]
) -> torch.optim.Optimizer:
    """Make the optimizer. 8-bit AdamW needs bitsandbytes; without it torch's AdamW is used, with a warning.

    Raises: UserError where lion or prodigy is not installed: no other optimizer takes their learning rates.
    """
    if name in ("lion", "prodigy"):
        make = {"lion": _lion, "prodigy": _prodigy}[name]
        try:
            return make(parameters, lr, weight_decay)
        except ImportError:
            package = {"lion": "bitsandbytes", "prodigy": "prodigyopt"}[name]
            raise UserError(f"--optimizer {name}: needs a package. Install it: pip install {package}") from None
    if name == "adamw8bit":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _adamw8bit(parameters, lr, weight_decay)
        except Exception as error:  # missing, or built for another CUDA: it fails in many ways, none may end a run
            extra_mib = 6 * sum(p.numel() for p in parameters) / 2**20  # two states of 4 bytes instead of 1
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warn(f"8-bit AdamW is not usable ({reason}); AdamW in fp32 takes {extra_mib:.0f} MiB more")
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def _adamw8bit(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    import bitsandbytes

    # its native library is looked up only when it is first called: one step on a throwaway weight tells
    trial = nn.Parameter(torch.zeros(4096, device=parameters[0].device))
    trial.grad = torch.ones_like(trial)
    bitsandbytes.optim.AdamW8bit([trial], lr=lr).step()
    return bitsandbytes.optim.AdamW8bit(parameters, lr=lr, weight_decay=weight_decay)


def _lion(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    import bitsandbytes

    return bitsandbytes.optim.Lion(parameters, lr=lr, weight_decay=weight_decay)


def _prodigy(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    import prodigyopt

    with contextlib.redirect_stdout(sys.stderr):  # it greets, on the stream that carries events
        return prodigyopt.Prodigy(parameters, lr=lr, weight_decay=weight_decay, safeguard_warmup=True)


def lr_factor(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a step (from 0) as a share of the peak: linear warm-up, then --lr-scheduler's fall.

    Source: the schedules of transformers.optimization, with an end at 0.
    """
    warmup = min(config.warmup_steps, config.steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / (config.steps - warmup)  # below 1
    if config.lr_scheduler == "constant":
        return 1.0
    if config.lr_scheduler in ("linear", "polynomial"):
        power = config.lr_scheduler_power if config.lr_scheduler == "polynomial" else 1.0
        return (1 - progress) ** power
    cycles = config.lr_scheduler_cycles if config.lr_scheduler == "cosine_with_restarts" else 1
    return 0.5 * (1 + math.cos(math.pi * (cycles * progress % 1)))
