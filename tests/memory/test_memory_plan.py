"""Memory switches: none changes loss and gradient beyond its stated tolerance, and each really keeps less."""

import pytest
import torch
from torch import nn

from trainer.builtin import MODEL
from trainer.memory import frozen_weights, memory_plan
from trainer.memory.memory_plan import MemoryPlan
from trainer.models import base_model
from trainer.models.networks import attach_lora

CPU = torch.device("cpu")
KEPT = {"fp32": 0.0, "bf16": 2**-8, "fp8": 2**-4}  # relative rounding of a stored weight


def layers():
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(24, 16), torch.randn(2, 5, 24)),
        "1x1": (nn.Conv2d(24, 16, 1), torch.randn(2, 24, 6, 6)),
        "stride": (nn.Conv2d(24, 16, 3, stride=2, padding=1, bias=False), torch.randn(2, 24, 6, 6)),
    }


@pytest.mark.parametrize("kind", layers())
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("offloaded", [False, True])
def test_frozen_layer_equals_the_layer(kind, kept, offloaded):
    """Forward and input gradient are those of a plain layer that holds the rounded weight."""
    plain, x = layers()[kind]
    stands = frozen_weights.FrozenLayer(plain, dtype=memory_plan.DTYPES[kept], device=CPU, offloaded=offloaded)
    rounded = stands.weight.materialize(CPU, torch.float32)
    largest = plain.weight.flatten(1).abs().amax(1).view(-1, *[1] * (plain.weight.ndim - 1))
    off = (rounded - plain.weight).abs()
    assert (off <= KEPT[kept] * plain.weight.abs() + (kept == "fp8") * largest * 2**-9 / 448).all()
    with torch.no_grad():
        plain.weight.copy_(rounded)

    def outcome(layer):
        inside = x.clone().requires_grad_(True)
        out = layer(inside)
        (out * torch.arange(out.numel()).view_as(out)).sum().backward()
        return out.detach(), inside.grad

    for one, two in zip(outcome(plain.requires_grad_(False)), outcome(stands), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("std", [2e-2, 2e-5, 2e-6])
def test_small_fp8_weights_keep_their_scale_in_fp16(std):
    """Only the result is rounded to fp16: a scale alone lies below what fp16 holds, up to 11 % off at 2e-5."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 16, bias=False)
    nn.init.normal_(layer.weight, std=std)
    kept = frozen_weights.Weight(layer.weight, dtype=frozen_weights.FP8, device=CPU, offloaded=False)
    wanted, found = kept.materialize(CPU, torch.float32), kept.materialize(CPU, torch.float16).float()
    assert ((found - wanted).abs() <= 2**-9 * wanted.abs() + 2**-25).all()


def test_autograd_keeps_no_fetched_weight():
    plain, x = layers()["linear"]
    sizes = []

    def keep(tensor):
        sizes.append(tuple(tensor.shape))
        return tensor

    stands = frozen_weights.FrozenLayer(plain, dtype=frozen_weights.FP8, device=CPU, offloaded=False)
    for layer, wanted in ((plain.requires_grad_(False), True), (stands, False)):
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            layer(x.clone().requires_grad_(True)).sum()
        assert any(sorted(size) == [16, 24] for size in sizes) == wanted


def test_frozen_layer_computes_in_autocasts_type():
    plain, x = layers()["linear"]
    stands = frozen_weights.FrozenLayer(plain, dtype=torch.float32, device=CPU, offloaded=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert stands(x).dtype == torch.bfloat16


def step(found: MemoryPlan):
    """Loss and LoRA gradient of the miniature on fixed input."""
    unet = base_model.load_unet(base_model.Base(MODEL), found.load_dtype)
    parameters = attach_lora(unet, rank=4, alpha=4, seed=0).parameters
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:  # the second layer of each pair starts at zero, and the first then has no gradient
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    memory_plan.apply_plan(unet, found, device=CPU)
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([100, 700])
    states = torch.randn(2, 77, 32, generator=generator)
    dtype = memory_plan.DTYPES[found.precision]
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):  # as the denoiser calls it
        out = unet(x.to(dtype), t, states.to(dtype)).sample
    loss = out.float().square().mean()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in parameters]), unet


@pytest.fixture(scope="module")
def plain():
    return step(MemoryPlan("fp32", "fp32"))


@pytest.mark.parametrize(
    ("found", "tolerance"),
    [
        (MemoryPlan("fp32", "fp32", checkpointing=3), 1e-6),
        (MemoryPlan("fp32", "fp32", checkpointing=99), 1e-6),
        (MemoryPlan("fp32", "fp32", offload=2), 1e-6),
        (MemoryPlan("fp32", "fp32", offload=99, checkpointing=99), 1e-6),
        (MemoryPlan("fp32", "bf16"), 0.01),
        (MemoryPlan("fp32", "fp8"), 0.03),
        (MemoryPlan("fp32", "fp8", offload=99, checkpointing=99), 0.03),
        (MemoryPlan("bf16", "bf16"), 0.01),
        (MemoryPlan("bf16", "fp8", offload=99, checkpointing=99), 0.03),
        (MemoryPlan("fp16", "fp16"), 0.002),
        (MemoryPlan("fp16", "fp16", offload=99, checkpointing=99), 0.002),
    ],
    ids=str,
)
def test_switch_keeps_the_loss(plain, found, tolerance):
    """Tolerances are relative: of the loss, and three times as much of the gradient."""
    loss, gradient, _ = step(found)
    assert abs(loss / plain[0] - 1) <= tolerance
    off = (gradient - plain[1]).norm() / plain[1].norm()
    assert off <= 3 * tolerance
    if (found.precision, found.weights) == ("fp32", "fp32"):
        assert off <= 1e-5
    else:
        assert off > 1e-5  # the switch did something


def test_checkpointing_goes_from_outside_in():
    unet = base_model.load_unet(base_model.Base(MODEL), torch.float32)
    units = memory_plan.checkpoint_units(unet)
    outer = {id(m) for block in (unet.down_blocks[0], unet.up_blocks[-1]) for m in block.modules()}
    is_outer = [id(unit) in outer for unit in units]
    assert is_outer == sorted(is_outer, reverse=True)
    assert 0 < sum(is_outer) < len(units)


def test_checkpointing_and_fp8_keep_less(plain):
    def kept(found):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            step(found)
        return total

    everything, some, nothing = (kept(MemoryPlan("fp32", "fp32", checkpointing=n)) for n in (0, 3, 99))
    assert nothing < some < everything


def test_missing_xformers_is_one_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "xformers", None)
    unet = base_model.load_unet(base_model.Base(MODEL), torch.float32)
    said = []
    memory_plan.apply_plan(unet, MemoryPlan("fp32", "fp32", attention="xformers"), device=CPU, warn=said.append)
    assert len(said) == 1
    assert "stays with torch's sdpa" in said[0]
