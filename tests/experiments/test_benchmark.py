"""The bench: it times what training does, and its comparison can tell a slower side."""

import re
import time

import pytest
import torch

from trainer.experiments import benchmark
from trainer.experiments.benchmark_steps import SMALL, Phases, Work, ours, yardstick
from trainer.memory.memory_plan import MemoryPlan

CPU = torch.device("cpu")
WORK = Work(SMALL, 64, 2, 1, 4, CPU)


@pytest.mark.long
def test_settings_print_a_line_each(capsys):
    words = ["--small", "--resolution", "64", "--repeat", "1", "--device", "cpu"]
    assert benchmark.main([*words, "--settings", "plain,selective,whole,smallest"]) == 0
    *lines, compared = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["plain", "selective", "whole", "smallest"]
    assert re.fullmatch(r"selective: \d\.\d{3} of the time of whole \(95 % upper bound \d\.\d{3}\)", compared)
    predicted = [float(line.split()[5]) for line in lines[2:]]
    assert predicted == sorted(predicted, reverse=True)
    for line in lines[2:]:
        total, *phases = (float(x) for x in line.split()[1:5])
        assert abs(total - sum(phases)) < 0.05


def test_both_sides_run_the_same_samples():
    """Forward passes of either side, counted at the U-Net."""
    found = MemoryPlan("fp32", "fp32", micro_batch=2)
    for side in (ours, yardstick):
        sizes = []
        step = side(WORK, found)
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda m, i, o, sizes=sizes: sizes.append(len(i[0])) if type(m).__name__ == "UNet2DConditionModel" else None
        )
        try:
            phases = step()
        finally:
            handle.remove()
        assert sum(sizes) == 3
        assert min(phases.seconds.values()) > 0


def fake(seconds):
    def step():
        time.sleep(0)
        return Phases({"forward": seconds.pop(0)})

    return step


def test_paired_ratio():
    slow = [1.1 * s for s in (1.0, 2.0, 1.5, 3.0, 1.0, 1.0)]
    ratio, upper = benchmark.paired_ratio(fake(slow), fake([1.0, 2.0, 1.5, 3.0, 1.0, 1.0]), 6)
    assert abs(ratio - 1.1) < 1e-6
    assert abs(upper - 1.1) < 1e-6


@pytest.mark.long
def test_plain_training_is_compared_on_as_many_samples(capsys):
    words = ["--small", "--resolution", "64", "--repeat", "1", "--device", "cpu", "--settings", "plain"]
    assert benchmark.main([*words, "--unsupervised"]) == 0
    compared = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"pu: \d\.\d{3} of the time of unsupervised \(95 % upper bound \d\.\d{3}\)", compared)
