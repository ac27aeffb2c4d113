"""The step gradient equals autograd on the full batch, for every micro-batch size and both signs of R.

The check can fail: a naive port that takes |R| of each micro-batch does.
"""

import pytest
import torch
from gradient_problems import (
    N_SENSITIVE,
    N_UNLABELED,
    SENSITIVE,
    UNLABELED,
    Miniature,
    Regression,
    accumulated,
    oracle,
    relative_error,
)

from trainer.objective import pu_loss

TOLERANCE = 1e-5


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
