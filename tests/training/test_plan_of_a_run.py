"""The memory plan that a run chooses: with its budget off CUDA, and with those it trains together with."""

from types import SimpleNamespace

import pytest
import torch

from trainer.config.train_config import TrainConfig
from trainer.memory import devices, planner
from trainer.memory.memory_plan import MemoryPlan
from trainer.training import run


def chosen(monkeypatch, theirs, device="cuda", **settings):
    """Settings of each call of `planner.resolve`, of a card with room for fp16 weights, and the plan."""
    asked = []

    def resolve(config, base, precision, budget_mib):
        asked.append(config)
        return MemoryPlan("fp16", "fp16" if config.weights == "auto" else config.weights), None

    monkeypatch.setattr(planner, "resolve", resolve)
    monkeypatch.setattr(devices, "choose_precision", lambda wanted, device: "fp16")
    monkeypatch.setattr(devices, "budget_mib", lambda device, wanted: 3000.0)
    ranks = SimpleNamespace(all_gather=lambda mine: [mine, theirs.get(mine, mine)])
    context = SimpleNamespace(device=torch.device(device), ranks=ranks)
    job = SimpleNamespace(config=TrainConfig.model_validate(settings), base=None)
    return asked, run._choose_memory_plan(job, context, None)


@pytest.mark.parametrize(("theirs", "weights"), [({}, "fp16"), ({"fp16": "fp8"}, "fp8")])
def test_cards_that_train_together_keep_weights_in_one_format(monkeypatch, theirs, weights):
    """Of a 2.4 and a 2.2 GiB card both take fp8: they must learn on the same network."""
    asked, plan = chosen(monkeypatch, theirs)
    assert plan.weights == weights
    assert [config.weights for config in asked] == ["auto", "fp8"][: 1 + bool(theirs)]


@pytest.mark.parametrize(
    ("device", "given", "wanted"), [("cpu", {}, 0), ("mps", {}, 0), ("cuda", {}, "auto"), ("cpu", {"offload": 2}, 2)]
)
def test_off_cuda_nothing_is_offloaded_unless_asked_for(monkeypatch, device, given, wanted):
    asked, _ = chosen(monkeypatch, {}, device, **given)
    assert [config.offload for config in asked] == [wanted]
