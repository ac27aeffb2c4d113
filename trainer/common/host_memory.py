"""How much memory the computer has free, and giving back what is no longer used."""

import gc
from pathlib import Path

CONTAINER = Path("/sys/fs/cgroup")  # a container's own limit, which the whole computer's figures do not show


def free_ram_mib(container: Path = CONTAINER) -> float:
    """Return the MiB of RAM that this process could still take without swapping."""
    import psutil

    free = float(psutil.virtual_memory().available)
    try:
        limit, used = ((container / name).read_text().strip() for name in ("memory.max", "memory.current"))
        entries = dict(line.split() for line in (container / "memory.stat").read_text().splitlines())
        free = min(free, int(limit) - int(used) + int(entries["inactive_file"]))  # file pages are given back
    except (OSError, ValueError, KeyError):  # no limit ("max"), or no container
        pass
    return max(free, 0.0) / 2**20


def give_back() -> None:
    """Free the memory of models that nothing refers to any more, on the card too, before the next one loads."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
