"""One step's gradient from micro-batches: exactly the full batch's, whatever their size. Knows no model."""

from collections.abc import Callable, Hashable, Sequence
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
    flipped: bool  # the assumed sign was wrong, so the sensitive samples ran twice


def accumulate(
    losses_of: Callable[[Sequence[T]], tuple[Tensor, Tensor]],
    unlabeled: Sequence[T],
    sensitive: Sequence[T],
    parameters: Sequence[nn.Parameter],
    weights: Weights,
    *,
    assumed_sign: int,
    micro_batch: int,
    shape_of: Callable[[T], Hashable] = lambda member: None,
    backward: Callable[[Tensor], None] = Tensor.backward,
    ranks: Ranks = ONE,
) -> Outcome:
    """Leave the gradient of the objective over the whole batch in each parameter's `.grad`.

    With the sign s of R assumed (the last step's), every sample's weight w(s) is known before the backward pass. So
    both kinds share their micro-batches and one gradient: a step costs what plain training on as many samples does.
    Where the whole batch tells another sign (rare), the gradient is negated, which is right for the unlabeled
    samples, and the sensitive ones run again with what they lack: w(-s) = -w(s) + (w(s) + w(-s)).

    Args:
        losses_of: (differentiable losses [n], importance [n]) of a micro-batch, see `micro_batches`, or of its end,
            the sensitive members; the same at every call.
        sensitive: may be empty where the objective ignores them.
        micro_batch: members in the model at once; changes memory and speed only.
        shape_of: members of one micro-batch have the same.
        backward: how to differentiate a scalar (fp16 scales it first).
        ranks: the batch is shared out over these; each rank calls this with the whole batch and gets the same outcome.
    """
    _clear(parameters)
    members, n, s = [*unlabeled, *sensitive], len(unlabeled), assumed_sign

    def run(parts: Sequence[list[int]], weigh: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Add sum_i w_i * d l_i to the gradients. Returns: [2, members] losses and importance of those in parts."""
        order, found = [], [parameters[0].new_zeros(2, 0, dtype=torch.float32)]
        for part in parts:
            losses, importance = losses_of([members[i] for i in part])
            backward((weigh(losses.detach(), sum(i < n for i in part)) * importance * losses).sum())
            order += part
            found.append(torch.stack([losses.detach(), importance]))
        return _in_place(torch.cat(found, 1), order, len(members))

    def assumed(losses: Tensor, n_unlabeled: int) -> Tensor:
        of_unlabeled = weights.unlabeled(losses[:n_unlabeled]) * weights.unlabeled_factor(s)
        return torch.cat([of_unlabeled, weights.sensitive(losses[n_unlabeled:], s)])

    def missing(losses: Tensor, n_unlabeled: int) -> Tensor:
        return weights.sensitive(losses, s) + weights.sensitive(losses, -s)

    mine = micro_batches(members, micro_batch, shape_of, ranks)
    found = run(mine, assumed)
    ranks.sum([found])
    losses, importance = found.cpu()  # here the host waits for the device, once a step
    kinds, factors = (losses[:n], losses[n:]), (importance[:n], importance[n:])
    outcome = risks(weights.objective, *kinds, prior=weights.prior, weight=weights.sensitive_weight, importance=factors)
    flipped = bool(sensitive) and weights.depends_on_sign and sign(outcome.normal) != s
    gradients = _gradients(parameters)
    if flipped:
        torch._foreach_neg_(gradients)
        run([again for part in mine if (again := [i for i in part if i >= n])], missing)
    ranks.sum(gradients)
    return Outcome(outcome, -s if flipped else s, flipped)


def micro_batches(
    members: Sequence[T], size: int, shape_of: Callable[[T], Hashable] = lambda member: None, ranks: Ranks = ONE
) -> list[list[int]]:
    """Return the places of the members of this rank's micro-batches, ascending in each."""
    groups: dict[Hashable, list[int]] = {}
    for i in ranks.share(range(len(members))):
        groups.setdefault(shape_of(members[i]), []).append(i)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def _in_place(found: Tensor, order: Sequence[int], n: int) -> Tensor:
    """Return [2, n] with column k of found at order[k], and zeros elsewhere."""
    placed = found.new_zeros(len(found), n)
    placed[:, torch.tensor(order, dtype=torch.long, device=found.device)] = found
    return placed


def _clear(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradients; zeros where this rank had no members."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
