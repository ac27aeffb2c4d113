"""Problems whose step gradient is known from autograd on the full batch; used by one process and by several."""

import torch
from torch import nn

from trainer.builtin import MODEL
from trainer.common.distributed import ONE
from trainer.models import base_model
from trainer.models.networks import attach_lora
from trainer.models.noise_schedule import per_sample_error
from trainer.objective import pu_loss, step_gradient

N_UNLABELED, N_SENSITIVE = 8, 7


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
        self.parameters = attach_lora(unet, rank=4, alpha=4.0, seed=0).parameters
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        n = N_UNLABELED + N_SENSITIVE
        schedule = base_model.load_noise_schedule(base_model.Base(MODEL))
        self.noise = torch.randn(n, 4, 8, 8, generator=generator)
        self.t = torch.randint(1000, (n,), generator=generator)
        self.noisy = schedule.add_noise(torch.randn(n, 4, 8, 8, generator=generator), self.noise, self.t)
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


def sensitive_weight_of(is_weighed):
    """A weight of the sensitive risk other than the prior, or the paper's: the prior."""
    return 0.45 if is_weighed else None


# members of a batch are indices into the problem's tensors
UNLABELED, SENSITIVE = list(range(N_UNLABELED)), list(range(N_UNLABELED, N_UNLABELED + N_SENSITIVE))


def oracle(problem, objective, prior, is_weighed=False):
    """Autograd through the objective on the whole batch at once. Returns (gradient, R)."""
    losses = [problem.losses(group) for group in (UNLABELED, SENSITIVE)]
    importance = [importance_of(group, is_weighed) for group in (UNLABELED, SENSITIVE)]
    weight = sensitive_weight_of(is_weighed)
    value = pu_loss.objective_value(objective, *losses, prior=prior, weight=weight, importance=importance)
    found = torch.autograd.grad(value, problem.parameters)
    risk = (importance[0] * losses[0]).mean() - prior * (importance[1] * losses[1]).mean()
    return torch.cat([g.flatten() for g in found]), risk.item()


def accumulated(problem, objective, prior, micro_batch, assumed_sign, is_weighed=False, ranks=ONE):
    weights = pu_loss.Weights(objective, prior, N_UNLABELED, N_SENSITIVE, sensitive_weight_of(is_weighed))
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
