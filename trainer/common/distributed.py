"""Several processes that train one LoRA (`accelerate launch -m trainer`, torchrun): shares of a batch, sums over all.

With one process everything here is a no-op. Each rank takes every world-th sample; the sum of the ranks' gradients is
the batch's gradient because samples are weighed by the whole batch's counts (pu_loss.Weights).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")
TOGETHER = 2**24  # numbers in one exchange: 64 MiB in fp32, more than a LoRA has


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the first process, the only one that writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's items; ranks may get unequal numbers, or none."""
        return items if self.world == 1 else items[self.rank :: self.world]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over all ranks, in place. Args: tensors: of one dtype and device.

        Small ones go together: an exchange costs much beside what is in it. A copy of all would double a whole
        network's gradient, so no more than TOGETHER numbers are copied at once.
        """
        if self.world == 1:
            return
        import torch.distributed

        for group in _groups(tensors):
            together = torch.cat([tensor.flatten() for tensor in group])
            torch.distributed.all_reduce(together)
            for tensor, part in zip(group, together.split([t.numel() for t in group]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def any(self, mine: bool, device: Any) -> bool:
        """Return whether `mine` is true on any rank."""
        if self.world == 1:
            return mine
        import torch

        flag = torch.tensor(float(mine), device=device)
        self.sum([flag])
        return bool(flag.item())

    def all_gather(self, mine: T) -> list[T]:
        """Collect each rank's value (text or numbers). Returns: the list, on every rank."""
        if self.world == 1:
            return [mine]
        from accelerate.utils import gather_object

        return gather_object([mine])

    def wait(self) -> None:
        """Wait until every rank has come here."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.barrier()

    def broadcast(self, value: T) -> T:
        """Return the first rank's value (text or numbers) on every rank."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


ONE = Ranks()
PATIENCE = timedelta(hours=4)  # how long all wait for one: the first alone estimates the prior and makes pictures


def from_environment(*, is_cpu: bool = False) -> Ranks:
    """Join the other processes of a launcher (its environment variables); a single process imports no torch.

    Args: is_cpu: do not use a GPU even where there is one.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=is_cpu or not torch.cuda.is_available(), timeout=PATIENCE)
    return Ranks(state.process_index, state.num_processes)


def _groups(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in order, as many at once as TOGETHER numbers hold, or one that is larger."""
    group: list[Tensor] = []
    for tensor in tensors:
        if group and sum(t.numel() for t in group) + tensor.numel() > TOGETHER:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group
