"""One step's gradient from micro-batches: exactly the full batch's, whatever their size. Knows no model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..common.distributed import ONE, Ranks
from .pu_loss import Risks, Weights, risks, sign

T = TypeVar("T")  # what a batch is made of, such as a sampler.TrainingSample


@dataclass(frozen=True)
class Outcome:
    """The result of one batch. `sign` is the true sign of R: assume it in the next step."""

    risks: Risks
    sign: int
    flipped: bool  # the assumed sign was wrong, so the sensitive part ran twice


def accumulate(
    losses_of: Callable[[Sequence[T]], tuple[Tensor, Tensor]],
    unlabeled: Sequence[T],
    sensitive: Sequence[T],
    parameters: Sequence[nn.Parameter],
    weights: Weights,
    *,
    assumed_sign: int,
    micro_batch: int,
    backward: Callable[[Tensor], None] = Tensor.backward,
    ranks: Ranks = ONE,
) -> Outcome:
    """Leave the gradient of the objective over the whole batch in each parameter's `.grad`.

    The unlabeled part is known up to the sign s of R, which only the whole batch tells. So it waits in one extra
    LoRA-sized buffer, and the sensitive part is computed with the last step's s; if that turns out wrong (rare), the
    sensitive part alone is run again.

    Args:
        losses_of: (differentiable losses [n], importance [n]) of some members, all unlabeled or all sensitive; the same
            at every call.
        sensitive: may be empty where the objective ignores them.
        micro_batch: members in the model at once; changes memory and speed only.
        backward: how to differentiate a scalar (fp16 scales it first).
        ranks: the batch is shared out over these; each rank calls this with the whole batch and gets the same outcome.
    """
    _clear(parameters)
    none = parameters[0].new_zeros(0, dtype=torch.float32)

    def run(members: Sequence[T], weigh: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        mine = _pass(losses_of, ranks.share(members), micro_batch, backward, weigh)
        losses, importance = (torch.cat([none, *(part[i] for part in mine)]) for i in (0, 1))
        return ranks.gather(losses, len(members)), ranks.gather(importance, len(members))

    def run_sensitive(s: int) -> tuple[Tensor, Tensor]:
        return run(sensitive, lambda losses: weights.sensitive(losses, s))

    losses_u, importance_u = run(unlabeled, weights.unlabeled)
    waiting = _take(parameters)
    s = assumed_sign
    losses_s, importance_s = run_sensitive(s)
    found = risks(weights.objective, losses_u, losses_s, prior=weights.prior, importance=(importance_u, importance_s))
    flipped = bool(sensitive) and weights.depends_on_sign and sign(found.normal) != s
    if flipped:
        s = -s
        _clear(parameters)
        run_sensitive(s)
    factor = weights.unlabeled_factor(s)
    gradients = [other.add_(part, alpha=factor) for part, other in zip(waiting, _take(parameters), strict=True)]
    ranks.sum(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return Outcome(found, s, flipped)


def _pass(
    losses_of: Callable[[Sequence[T]], tuple[Tensor, Tensor]],
    members: Sequence[T],
    micro_batch: int,
    backward: Callable[[Tensor], None],
    weigh: Callable[[Tensor], Tensor],
) -> list[tuple[Tensor, Tensor]]:
    """Add sum_i w_i * d l_i to the gradients, micro-batch by micro-batch. Returns: losses and importance of each."""
    found = []
    for part in _parts(members, micro_batch):
        losses, importance = losses_of(part)
        backward((weigh(losses.detach()) * importance * losses).sum())
        found.append((losses.detach(), importance))
    return found


def _parts(members: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (members[i : i + size] for i in range(0, len(members), size))


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _take(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Move the gradients out of the parameters and return them."""
    taken: list[Tensor] = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    _clear(parameters)
    return taken
