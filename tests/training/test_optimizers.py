"""The learning rate over the steps, against transformers' schedules."""

import pytest
import torch
from transformers import optimization

from trainer.config.train_config import TrainConfig
from trainer.training.optimizers import lr_factor

STEPS, WARMUP = 50, 10


def theirs(name, **more):
    """transformers' factor at each step after the warm-up."""
    make = {
        "constant": optimization.get_constant_schedule_with_warmup,
        "linear": optimization.get_linear_schedule_with_warmup,
        "cosine": optimization.get_cosine_schedule_with_warmup,
        "cosine_with_restarts": optimization.get_cosine_with_hard_restarts_schedule_with_warmup,
        "polynomial": optimization.get_polynomial_decay_schedule_with_warmup,
    }[name]
    length = {} if name == "constant" else {"num_training_steps": STEPS}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    factor = make(optimizer, num_warmup_steps=WARMUP, **length, **more).lr_lambdas[0]
    return [factor(step) for step in range(WARMUP, STEPS)]


@pytest.mark.parametrize(
    ("name", "own", "more"),
    [
        ("constant", {}, {}),
        ("linear", {}, {}),
        ("cosine", {}, {}),
        ("cosine_with_restarts", {"lr_scheduler_cycles": 3}, {"num_cycles": 3}),
        ("polynomial", {"lr_scheduler_power": 2.5}, {"power": 2.5, "lr_end": 0.0}),
    ],
)
def test_schedules_are_those_of_transformers(name, own, more):
    config = TrainConfig(steps=STEPS, warmup_steps=WARMUP, lr_scheduler=name, **own)
    found = [lr_factor(step, config) for step in range(STEPS)]
    assert found[:WARMUP] == pytest.approx([(step + 1) / (WARMUP + 1) for step in range(WARMUP)])  # never 0
    assert found[WARMUP:] == pytest.approx(theirs(name, **more))


def test_a_run_shorter_than_its_warm_up_rises_to_its_end():
    config = TrainConfig(steps=4, warmup_steps=20)
    assert [lr_factor(step, config) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
