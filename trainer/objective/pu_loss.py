"""The positive-unlabeled objective: risks and step-gradient weights from per-sample losses. Knows nothing of models.

l is a sample's denoising error over its temperature. With p(normal | x) = exp(-l), the loss of calling x normal is
l, and of calling it sensitive phi(l) = -log(1 - exp(-l)). The unlabeled data are a mixture, p_U = prior * p_S +
(1 - prior) * p_N, so the normal risk R = (1 - prior) E_N[l] = E_U[l] - prior * E_S[l] needs no normal label.

    pu            a * E_S[phi(l)] + |R|, where the paper's a is the prior; see `sensitive_weight`
    nnpu          the same while R >= 0, else -R alone
    supervised    mean over the batch of l (unlabeled) and phi(l) (sensitive)
    unsupervised  E_U[l]

The identity holds prompt by prompt, so within a batch both kinds must carry the same captions (see data/sampler.py).

Source: Takahashi et al., ICLR 2025 (arXiv 2503.03789); nnpu: Kiryo et al., NeurIPS 2017.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

OBJECTIVES = ("pu", "nnpu", "supervised", "unsupervised")


def sensitive_loss(losses: Tensor) -> Tensor:
    """Return phi(l) = -log(1 - exp(-l)), the loss of calling a sample sensitive.

    Args: losses: [n] fp32, > 0.
    Returns: [n]; grows without bound towards l = 0, vanishes for large l.
    """
    # each branch sees only its own side of ln 2: autograd through `where` would turn an inf of the other into nan
    small = losses < math.log(2)
    near = torch.log(-torch.expm1(-losses.where(small, torch.ones_like(losses))))
    far = torch.log1p(-torch.exp(-losses.where(~small, torch.ones_like(losses))))
    return -torch.where(small, near, far)


def sensitive_slope(losses: Tensor) -> Tensor:
    """Return phi'(l) = -1 / (exp(l) - 1), the slope of `sensitive_loss`; exactly 0 in fp32 above l of about 104."""
    return -torch.exp(-losses) / -torch.expm1(-losses)


PUSH = 2 / 3  # of the pull of normal images, where noise hides the kind; at 1 the objective has no minimum


def sensitive_weight(prior: float, temperature: float) -> float:
    """Return the weight a of the sensitive risk with which its push is as strong at every prior and temperature.

    With much noise a sample does not show of which kind it is. There normal images pull on the prediction with weight
    1 - prior, and sensitive ones push with weight p = a / (exp(1 / temperature) - 1), the slope of phi at the base
    model's error. The prediction that minimises the sum lies beyond the normal images' mean, by p / (1 - prior - p)
    distances between the two means. Where p reaches 1 - prior there is none: errors grow until phi saturates.

    The paper's a, the prior, pushes too little where the prior is small, and has no minimum where the prior is above
    1 - exp(-1 / temperature). Here p is PUSH * (1 - prior), so the minimum lies two distances beyond, and the
    temperature says how far errors on sensitive images grow before the push fades.

    Args:
        prior: share of sensitive samples in the unlabeled set, 0 < prior < 1.
        temperature: in the base model's own errors (`per-timestep`).
    """
    return PUSH * (1 - prior) * math.expm1(1 / temperature)


@dataclass(frozen=True)
class Risks:
    """One step's risks, as floats."""

    objective: float  # what is minimised
    unlabeled: float  # E_U[l]
    loss_sensitive: float  # E_S[l]; nan without any
    sensitive: float  # weight * E_S[phi(l)]
    normal: float  # R
    slope: float  # E_S[phi']: near 0 means that the sensitive term is dead


def normal_risk(unlabeled: Tensor, sensitive: Tensor, *, prior: float) -> Tensor:
    """Estimate (1 - prior) * E_normal[l] from what we have.

    Args:
        unlabeled: [n_u] losses of unlabeled samples.
        sensitive: [n_s] losses of sensitive samples under the same captions.
        prior: share of sensitive samples in the unlabeled set, 0 < prior < 1.
    Returns: scalar; may be negative on a finite batch.
    Raises: ValueError if a group is empty.
    Source: Takahashi et al. 2025, the PU rewriting of the normal ELBO.
    """
    if not len(unlabeled) or not len(sensitive):
        raise ValueError(f"need both groups, got {len(unlabeled)} unlabeled and {len(sensitive)} sensitive samples")
    return unlabeled.mean() - prior * sensitive.mean()


# of the unlabeled and the sensitive samples: [n_u], [n_s], or one number for all
Importance = tuple[Tensor | float, Tensor | float]
EQUAL: Importance = (1.0, 1.0)


def objective_value(
    objective: str,
    unlabeled: Tensor,
    sensitive: Tensor,
    *,
    prior: float,
    weight: float | None = None,
    importance: Importance = EQUAL,
) -> Tensor:
    """Return the objective on a full batch, differentiable: the oracle that the step gradient is tested against.

    Args:
        objective: one of OBJECTIVES.
        unlabeled, sensitive: [n_u], [n_s] losses.
        weight: of the sensitive risk; None: the prior.
        importance: factors of samples (min-SNR), outside phi: a sample counts less, its probability stays.
    Returns: scalar.
    """
    of_unlabeled, of_sensitive = importance
    if objective == "unsupervised":
        return (of_unlabeled * unlabeled).mean()
    called_sensitive = of_sensitive * sensitive_loss(sensitive)
    if objective == "supervised":
        return torch.cat([of_unlabeled * unlabeled, called_sensitive]).mean()
    risk = normal_risk(of_unlabeled * unlabeled, of_sensitive * sensitive, prior=prior)
    if objective == "nnpu" and risk < 0:
        return -risk
    return (prior if weight is None else weight) * called_sensitive.mean() + risk.abs()


def risks(
    objective: str,
    unlabeled: Tensor,
    sensitive: Tensor,
    *,
    prior: float,
    weight: float | None = None,
    importance: Importance = EQUAL,
) -> Risks:
    """Return all parts of one step's objective, for the log and for the sign that the gradient needs."""
    nan = float("nan")
    weight = prior if weight is None else weight
    value = objective_value(objective, unlabeled, sensitive, prior=prior, weight=weight, importance=importance).item()
    of_unlabeled, of_sensitive = importance
    weighed_u, weighed_s = of_unlabeled * unlabeled, of_sensitive * sensitive
    if objective == "unsupervised":
        return Risks(value, weighed_u.mean().item(), nan, nan, nan, nan)
    return Risks(
        objective=value,
        unlabeled=weighed_u.mean().item(),
        loss_sensitive=weighed_s.mean().item(),
        sensitive=weight * (of_sensitive * sensitive_loss(sensitive)).mean().item(),
        normal=normal_risk(weighed_u, weighed_s, prior=prior).item(),
        slope=(of_sensitive * sensitive_slope(sensitive)).mean().item(),
    )


def sign(normal: float) -> int:
    """Return the sign s of R by which the step gradient is weighted; R = 0 counts as positive."""
    return -1 if normal < 0 else 1


@dataclass(frozen=True)
class Weights:
    """Turns losses into the gradient of the whole batch, sample by sample: d objective = sum_i w_i * d l_i.

    A sample's importance is one more factor of its w_i, the caller's.

    A micro-batch knows neither the batch's size nor the sign of R, so both are arguments. That is what makes the
    sum over any micro-batches, in any order, the gradient of the full batch: |R| of a part is not a part of |R|.
    """

    objective: str
    prior: float
    n_unlabeled: int
    n_sensitive: int
    sensitive_weight: float | None = None  # of the sensitive risk; None: the prior

    def unlabeled(self, losses: Tensor) -> Tensor:
        """Return the weights of unlabeled samples, [n] for [n] losses, without the factor s (`unlabeled_factor`)."""
        return torch.full_like(losses, 1 / self._unlabeled_count)

    def unlabeled_factor(self, s: int) -> int:
        """Return the factor of the summed unlabeled gradient, once s is known."""
        return s if self.depends_on_sign else 1

    def sensitive(self, losses: Tensor, s: int) -> Tensor:
        """Return the weights of sensitive samples under an assumed sign.

        Args:
            losses: [n], detached.
            s: sign of R.
        Returns: [n].
        """
        if self.objective == "unsupervised":
            return torch.zeros_like(losses)
        if self.objective == "supervised":
            return sensitive_slope(losses) / self._unlabeled_count
        slope = sensitive_slope(losses) if self.objective == "pu" or s > 0 else torch.zeros_like(losses)
        weight = self.prior if self.sensitive_weight is None else self.sensitive_weight
        return (weight * slope - s * self.prior) / self.n_sensitive

    @property
    def depends_on_sign(self) -> bool:
        return self.objective in ("pu", "nnpu")

    @property
    def _unlabeled_count(self) -> int:
        return self.n_unlabeled + (self.n_sensitive if self.objective == "supervised" else 0)
