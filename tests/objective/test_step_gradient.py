"""The step gradient equals autograd on the full batch, for every micro-batch size and both signs of R.

The check can fail: a naive port that takes |R| of each micro-batch does.
"""

import pytest
import torch
from torch import nn

from trainer.builtin import MODEL
from trainer.common.distributed import ONE
from trainer.models import base_model, lora
from trainer.models.noise_schedule import add_noise, per_sample_error
from trainer.objective import pu_loss, step_gradient

N_UNLABELED, N_SENSITIVE = 8, 7
TOLERANCE = 1e-5


class Regression:
    """Random tensors: losses are squared errors of a small network, sensitive ones larger by a factor."""

    def __init__(self, sensitive_factor):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
        self.inputs = torch.randn(N_UNLABELED + N_SENSITIVE, 6)
        self.targets = torch.randn(len(self.inputs), 4)
        self.factor = torch.ones(len(self.inputs))
        self.factor[N_UNLABELED:] = sensitive_factor
        self.parameters = list(self.net.parameters())

    def losses(self, members):
        i = list(members)
        return (self.net(self.inputs[i]) - self.targets[i]).square().mean(1) * self.factor[i]


class Miniature:
    """The built-in U-Net with a LoRA that is not zero any more."""

    def __init__(self, sensitive_factor):
        unet = base_model.load_unet(base_model.Base(MODEL), torch.float32)
        self.unet = unet
        self.parameters = lora.attach(unet, rank=4, alpha=4.0, seed=0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        n = N_UNLABELED + N_SENSITIVE
        signal, _ = base_model.load_alphas_cumprod(base_model.Base(MODEL))
        self.noise = torch.randn(n, 4, 8, 8, generator=generator)
        self.t = torch.randint(1000, (n,), generator=generator)
        self.noisy = add_noise(torch.randn(n, 4, 8, 8, generator=generator), self.noise, self.t, signal)
        self.text = torch.randn(n, 77, 32, generator=generator)
        self.factor = torch.ones(n)
        self.factor[N_UNLABELED:] = sensitive_factor

    def losses(self, members):
        i = list(members)
        found = self.unet(self.noisy[i], self.t[i], self.text[i]).sample
        return per_sample_error(found, self.noise[i]) / 256 * self.factor[i]


def importance_of(members, is_weighed):
    """Factors of samples, as min-SNR gives them: 1, or between 0.1 and 1."""
    i = torch.tensor(members)
    return 0.1 + (i * 7 % 10) / 10 if is_weighed else torch.ones(len(members))


# members of a batch are indices into the problem's tensors
UNLABELED, SENSITIVE = list(range(N_UNLABELED)), list(range(N_UNLABELED, N_UNLABELED + N_SENSITIVE))


def oracle(problem, objective, prior, is_weighed=False):
    """Autograd through the objective on the whole batch at once. Returns (gradient, R)."""
    losses = [problem.losses(group) for group in (UNLABELED, SENSITIVE)]
    importance = [importance_of(group, is_weighed) for group in (UNLABELED, SENSITIVE)]
    value = pu_loss.objective_value(objective, *losses, prior=prior, importance=importance)
    found = torch.autograd.grad(value, problem.parameters)
    risk = (importance[0] * losses[0]).mean() - prior * (importance[1] * losses[1]).mean()
    return torch.cat([g.flatten() for g in found]), risk.item()


def accumulated(problem, objective, prior, micro_batch, assumed_sign, is_weighed=False, ranks=ONE):
    weights = pu_loss.Weights(objective, prior, N_UNLABELED, N_SENSITIVE)
    outcome = step_gradient.accumulate(
        lambda members: (problem.losses(members), importance_of(members, is_weighed)),
        UNLABELED,
        SENSITIVE,
        problem.parameters,
        weights,
        assumed_sign=assumed_sign,
        micro_batch=micro_batch,
        ranks=ranks,
    )
    return torch.cat([p.grad.flatten() for p in problem.parameters]), outcome


def relative_error(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.fixture(scope="module", params=[Regression, Miniature], ids=["random tensors", "miniature"])
def make(request):
    return request.param


@pytest.mark.parametrize("is_negative", [False, True], ids=["R>0", "R<0"])
@pytest.mark.parametrize("is_weighed", [False, True], ids=["equal", "weighed"])
@pytest.mark.parametrize("objective", pu_loss.OBJECTIVES)
def test_equals_autograd_on_the_full_batch(make, objective, is_negative, is_weighed):
    problem, prior = make(30.0 if is_negative else 1.0), 0.3
    wanted, risk = oracle(problem, objective, prior, is_weighed)
    assert (risk < 0) == is_negative
    for micro_batch in (1, 3, N_UNLABELED):
        for assumed_sign in (1, -1):
            found, outcome = accumulated(problem, objective, prior, micro_batch, assumed_sign, is_weighed)
            assert relative_error(found, wanted) <= TOLERANCE, (micro_batch, assumed_sign)
            assert outcome.flipped == (objective in ("pu", "nnpu") and (assumed_sign < 0) != is_negative)
            assert outcome.risks.normal == pytest.approx(risk, rel=1e-4) or objective == "unsupervised"


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_a_naive_port_fails_the_same_check(make, micro_batch):
    """|R| taken per micro-batch and accumulated: what a plain training loop would do."""
    problem, prior = make(1.0), 0.3
    wanted, _ = oracle(problem, "pu", prior)
    total = 0
    for kind, members in (("u", UNLABELED), ("s", SENSITIVE)):
        for i in range(0, len(members), micro_batch):
            part = problem.losses(members[i : i + micro_batch])
            if kind == "u":
                total = total + part.sum().abs() / N_UNLABELED
            else:
                pull = pu_loss.sensitive_loss(part).sum() + part.sum().abs()
                total = total + prior * pull / N_SENSITIVE
    naive = torch.cat([g.flatten() for g in torch.autograd.grad(total, problem.parameters)])
    assert relative_error(naive, wanted) > 100 * TOLERANCE


def test_nnpu_and_pu_agree_until_the_risk_is_negative():
    for factor, same in ((1.0, True), (30.0, False)):
        problem = Regression(factor)
        pu, nnpu = (accumulated(problem, o, 0.3, 3, 1)[0] for o in ("pu", "nnpu"))
        assert (relative_error(nnpu, pu) < TOLERANCE) == same
