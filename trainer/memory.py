"""Device, precision, optimizer and micro-batch: what decides whether a run fits the card."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import UserError


def choose_device(wanted: str, *, is_alone: bool = True) -> torch.device:
    """auto: the first NVIDIA card, else Apple's GPU, else the CPU; among several processes, each its own card.

    Raises: UserError if the wanted one is not there, or is one card for several processes.
    """
    if not is_alone and wanted != "cpu":
        from accelerate import PartialState

        if wanted != "auto":
            raise UserError(f"--device {wanted}: with several processes each takes its own card; leave it out")
        return PartialState().device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {wanted}: torch sees {torch.cuda.device_count()} CUDA device(s)")
    if device.type == "mps" and not _has_mps():
        raise UserError("--device mps: torch sees no Apple GPU here")
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def flush_denormals() -> None:
    """Treat denormal numbers as zero: they make CPUs many times slower, and no result depends on them."""
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)  # numpy before 2.3 warns if it first looks at a type's limits afterwards
    torch.set_flush_denormal(True)


def choose_precision(wanted: str, device: torch.device) -> str:
    """auto: bf16 from compute capability 8.0, else fp16; fp32 on GTX 16xx, whose fp16 makes nan, and off CUDA.

    Raises: UserError for fp16 on the CPU.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: the CPU trains in fp32 or bf16 only")
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return "bf16"
    return "fp32" if "GTX 16" in torch.cuda.get_device_name(device) else "fp16"


def make_accelerator(precision: str, device: torch.device, *, is_alone: bool) -> Any:
    """accelerate's autocast, fp16 scaling and clipping on one device.

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
    """AdamW; its 8-bit form where bitsandbytes works, otherwise a warning with the cost and torch's own.

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


def largest_that_fits(size: int, attempt: Callable[[int], None]) -> int:
    """The planned micro-batch, or the largest half, quarter, … of it that a card really bears.

    Args: attempt: one forward and backward pass of that many samples.
    Raises: torch.OutOfMemoryError if not even one sample fits.
    """
    while True:
        try:
            attempt(size)
            return size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = (size + 1) // 2
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the card's or the computer's: torch has no class for the latter."""
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError)


def budget_mib(device: torch.device, wanted_gib: float | None) -> float:
    """Memory of a card that a run may take: what is asked for, or what is free. Infinite off CUDA."""
    if device.type != "cuda":
        return float("inf")
    return torch.cuda.mem_get_info(device)[0] / 2**20 if wanted_gib is None else wanted_gib * 1024


def peak_mib(device: torch.device) -> float:
    """Most memory held so far: the card's where there is one, else this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
