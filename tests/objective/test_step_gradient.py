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

from trainer.objective import pu_loss, step_gradient

TOLERANCE = 1e-5


@pytest.fixture(
    scope="module",
    params=[Regression, pytest.param(Miniature, marks=pytest.mark.long)],
    ids=["random tensors", "miniature"],
)
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


def passes(objective, assumed_sign, micro_batch, shape_of=lambda member: None):
    """Members of each pass through the model where R > 0, and the gradient."""
    problem, seen = Regression(1.0), []

    def losses_of(members):
        seen.append(list(members))
        return problem.losses(members), torch.ones(len(members))

    step_gradient.accumulate(
        losses_of,
        UNLABELED,
        SENSITIVE if objective != "unsupervised" else [],
        problem.parameters,
        pu_loss.Weights(objective, 0.3, N_UNLABELED, N_SENSITIVE),
        assumed_sign=assumed_sign,
        micro_batch=micro_batch,
        shape_of=shape_of,
    )
    return seen, torch.cat([p.grad.flatten() for p in problem.parameters])


@pytest.mark.parametrize("objective", ["pu", "nnpu", "supervised"])
def test_a_step_costs_what_plain_training_does(objective):
    """Both kinds share their passes; a wrong sign costs one more of the sensitive samples, and of no others."""
    n = N_UNLABELED + N_SENSITIVE
    assert [len(members) for members in passes(objective, 1, 6)[0]] == [6, 6, 3]
    assert passes(objective, 1, n)[0] == [[*UNLABELED, *SENSITIVE]]
    again = [SENSITIVE] if objective != "supervised" else []
    assert passes(objective, -1, n)[0] == [[*UNLABELED, *SENSITIVE], *again]


def test_a_micro_batch_is_of_one_shape():
    """Every member once, unlabeled ones first, and the gradient of the whole batch all the same."""
    seen, found = passes("pu", -1, 3, shape_of=lambda member: member % 2)
    assert all(len({i % 2 for i in members}) == 1 and members == sorted(members) for members in seen)
    assert [len(members) for members in seen] == [3, 3, 2, 3, 3, 1, 2, 2, 2, 1]  # 8 even, 7 odd; 4 and 3 once more
    assert sorted(i for members in seen[:6] for i in members) == [*UNLABELED, *SENSITIVE]
    wanted, _ = oracle(Regression(1.0), "pu", 0.3)
    assert relative_error(found, wanted) <= TOLERANCE
