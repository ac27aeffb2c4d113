"""The objective's parts against closed forms and float64."""

import math

import pytest
import torch

from trainer.objective import pu_loss


def losses(seed, n):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 2 + 0.05


def test_sensitive_loss_matches_float64_over_its_whole_range():
    values = torch.logspace(-6, 2, 200)
    x = values.double()
    exact = -torch.where(x < 1, torch.log(-torch.expm1(-x)), torch.log1p(-torch.exp(-x)))
    torch.testing.assert_close(pu_loss.sensitive_loss(values).double(), exact, rtol=2e-6, atol=1e-30)


def test_slope_is_the_derivative_of_the_loss_and_never_nan():
    values = torch.logspace(-6, 3, 300, requires_grad=True)
    (slope,) = torch.autograd.grad(pu_loss.sensitive_loss(values).sum(), values)
    assert slope.isfinite().all()
    torch.testing.assert_close(pu_loss.sensitive_slope(values.detach()), slope, rtol=1e-5, atol=1e-30)


def test_the_sensitive_term_is_dead_above_104():
    assert pu_loss.sensitive_slope(torch.tensor([110.0])) == 0
    assert pu_loss.sensitive_slope(torch.tensor([80.0])) < 0  # above 87 only where denormals are not flushed


def test_normal_risk_recovers_the_normal_loss_from_a_mixture():
    normal, sensitive, prior = 0.4, 1.7, 0.3
    mixture = torch.full((5,), prior * sensitive + (1 - prior) * normal)
    risk = pu_loss.normal_risk(mixture, torch.full((3,), sensitive), prior=prior)
    assert risk.item() == pytest.approx((1 - prior) * normal, rel=1e-6)


def test_normal_risk_needs_both_groups():
    with pytest.raises(ValueError, match="need both groups, got 2 unlabeled and 0 sensitive"):
        pu_loss.normal_risk(losses(0, 2), losses(0, 0), prior=0.2)


def test_objectives_by_hand():
    u, s, prior = losses(1, 4), losses(2, 3), 0.2
    phi = [-math.log(1 - math.exp(-x)) for x in s.tolist()]
    risk = u.mean().item() - prior * s.mean().item()
    expected = {
        "pu": prior * sum(phi) / 3 + abs(risk),
        "nnpu": prior * sum(phi) / 3 + risk,
        "supervised": (u.sum().item() + sum(phi)) / 7,
        "unsupervised": u.mean().item(),
    }
    assert set(expected) == set(pu_loss.OBJECTIVES)
    for objective, value in expected.items():
        assert pu_loss.objective_value(objective, u, s, prior=prior).item() == pytest.approx(value, rel=1e-5)


def test_negative_risk_parts_pu_from_nnpu():
    u, s, prior = losses(1, 4) * 0.1, losses(2, 3) + 5, 0.9
    risk = (u.mean() - prior * s.mean()).item()
    assert risk < 0
    assert pu_loss.objective_value("nnpu", u, s, prior=prior).item() == pytest.approx(-risk)
    pull = prior * pu_loss.sensitive_loss(s).mean().item()
    assert pu_loss.objective_value("pu", u, s, prior=prior).item() == pytest.approx(pull - risk)


def test_risks_reports_the_same_numbers():
    u, s = losses(1, 4), losses(2, 3)
    found = pu_loss.risks("pu", u, s, prior=0.2)
    assert found.objective == pytest.approx(pu_loss.objective_value("pu", u, s, prior=0.2).item())
    assert found.normal == pytest.approx(found.unlabeled - 0.2 * found.loss_sensitive)
    assert found.objective == pytest.approx(found.sensitive + abs(found.normal))
    assert math.isnan(pu_loss.risks("unsupervised", u, s, prior=0.2).normal)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("prior", [0.01, 0.2, 0.4, 0.9])
def test_the_minimum_lies_two_distances_beyond_the_normal_mean(prior, temperature):
    """Where noise hides the kind: one number is predicted, normal images want 0, sensitive ones 1.

    The gradient is that of `Weights` in expectation, at the base model's error, for a mixture of both kinds.
    """
    weights = pu_loss.Weights("pu", prior, 1, 1, pu_loss.sensitive_weight(prior, temperature))
    of_sensitive = weights.sensitive(torch.tensor([1 / temperature]), 1).item()  # weight of d l, R > 0
    normal, sensitive = 1 - prior, prior + of_sensitive  # the unlabeled ones are a mixture
    assert sensitive / (normal + sensitive) == pytest.approx(-2, rel=1e-4)  # where the gradient vanishes


def test_the_papers_weight_has_no_minimum_above_a_prior():
    """The bound of the docstring: with the prior as weight, push and pull are equal at 1 - exp(-1 / temperature)."""
    for temperature in (1.5, 3.0):
        prior = 1 - math.exp(-1 / temperature)
        push = -prior * pu_loss.sensitive_slope(torch.tensor(1 / temperature)).item()
        assert push == pytest.approx(1 - prior, rel=1e-5)
