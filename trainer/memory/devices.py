"""The device: which one, its number format, how much memory is free, and whether memory ran out."""

import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..common.errors import UserError
from ..common.host_memory import free_ram_mib
from ..common.wording import counted

# Parts of the names of Turing cards without tensor cores, as ComfyUI lists them.
FP16_IS_BROKEN = ("GTX 16", "T400", "T500", "T550", "T600", "T1000", "T1200", "T2000", "MX450", "MX550", "CMP 30HX")

# AMD architectures with bf16 arithmetic: CDNA from MI100 on, RDNA 3 and later.
NATIVE_BF16 = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")


def choose_device(wanted: str, *, is_alone: bool = True) -> torch.device:
    """Choose the device.

    auto: the first NVIDIA card, else Apple's GPU, else the CPU; among several processes, each its own card.

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
        raise UserError(f"--device {wanted}: torch sees {counted(torch.cuda.device_count(), 'CUDA device')}")
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
    """Choose the number format.

    auto: bf16 from compute capability 8.0 (on AMD cards: where it is native), else fp16; fp32 where fp16 makes nan
    (GTX 16xx), and off CUDA.

    Raises: UserError for fp16 on the CPU.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: the CPU trains in fp32 or bf16 only")
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    if _has_bf16(device):
        return "bf16"
    return "fp32" if any(part in torch.cuda.get_device_name(device) for part in FP16_IS_BROKEN) else "fp16"


def _has_bf16(device: torch.device) -> bool:
    if torch.version.hip:  # RDNA 1 and 2 and Vega report a capability of 8 and more, too, and emulate it
        return torch.cuda.get_device_properties(device).gcnArchName.startswith(NATIVE_BF16)
    return torch.cuda.get_device_capability(device) >= (8, 0)


def common_precision(found: Sequence[str]) -> str:
    """Return a number format that all cards support, so that their gradients add up. Args: found: each card's best."""
    if len(set(found)) == 1:
        return found[0]
    return "fp32" if "fp32" in found else "fp16"


def largest_that_fits(size: int, attempt: Callable[[int], None]) -> int:
    """Return the planned micro-batch, or the largest half, quarter, … of it that fits on the GPU.

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


OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "alloc_failed",
    "could not create a primitive",  # all that oneDNN says of it, on the CPU
    # what cuDNN and cuBLAS say where a full card leaves them no workspace; a broken installation fails much earlier
    "was unable to find an engine",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
    "cublas_status_not_initialized",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the card's or the computer's: much of that comes without a class of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in OUT_OF_MEMORY)


def budget_mib(device: torch.device, wanted_gib: float | None) -> float:
    """Return the MiB that a run may use: free GPU memory, or the requested budget if less.

    Off CUDA it is the requested one or what RAM has free, whichever is less; infinite where none is requested.

    What is free no longer has CUDA's own context in it, which the estimate counts, too: so much is left for what no
    estimate sees (workspaces of cuBLAS and cuDNN, fragmentation). Windows lends a full card the computer's memory
    instead of failing, and everything crawls.
    """
    if device.type != "cuda":
        return float("inf") if wanted_gib is None else min(free_ram_mib(), wanted_gib * 1024)
    free = torch.cuda.mem_get_info(device)[0] / 2**20
    return free if wanted_gib is None else min(free, wanted_gib * 1024)


def reset_peak(device: torch.device) -> None:
    """Reset the peak that `peak_mib` reports, where the device can."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> float:
    """Return the peak MiB so far: of the GPU, else of this process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
