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

# Parts of the names of Turing cards without tensor cores, as ComfyUI lists them.
FP16_IS_BROKEN = ("GTX 16", "T500", "T550", "T600", "T1000", "T1200", "T2000", "MX450", "MX550", "CMP 30HX")


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
    """auto: bf16 from compute capability 8.0, else fp16; fp32 where fp16 makes nan (GTX 16xx), and off CUDA.

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
    return "fp32" if any(part in torch.cuda.get_device_name(device) for part in FP16_IS_BROKEN) else "fp16"


def common_precision(found: Sequence[str]) -> str:
    """What all of several cards compute in, so that their gradients add up. Args: found: what is best for each."""
    if len(set(found)) == 1:
        return found[0]
    return "fp32" if "fp32" in found else "fp16"


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
    Raises: what `is_out_of_memory` knows, if not even one sample fits.
    """
    while True:
        try:
            attempt(size)
            return size
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            size = (size + 1) // 2
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the card's or the computer's: much of that comes without a class of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in words)


def budget_mib(device: torch.device, wanted_gib: float | None) -> float:
    """Memory of a card that a run may take: what is free, or what is asked for if that is less. Infinite off CUDA.

    What is free no longer has CUDA's own context in it, which the estimate counts, too: so much is left for what no
    estimate sees (workspaces of cuBLAS and cuDNN, fragmentation). Windows lends a full card the computer's memory
    instead of failing, and everything crawls.
    """
    if device.type != "cuda":
        return float("inf")
    free = torch.cuda.mem_get_info(device)[0] / 2**20
    return free if wanted_gib is None else min(free, wanted_gib * 1024)


def reset_peak(device: torch.device) -> None:
    """Have `peak_mib` tell of what comes now, where the device can."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


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
