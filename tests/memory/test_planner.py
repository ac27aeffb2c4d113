"""The memory estimate: against torch's own profiler, and the switches that it chooses."""

import functools
import gc
import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from random_checkpoint import FULL, SMALL, shapes

from trainer.builtin import MODEL
from trainer.config.train_config import TrainConfig
from trainer.memory import memory_plan, planner
from trainer.memory.estimator import Shape, predict, predict_vae
from trainer.memory.memory_plan import MemoryPlan
from trainer.memory.planner import MemoryRequest
from trainer.models import single_file
from trainer.models.base_model import Base
from trainer.models.networks import LoraNetwork, attach_lora
from trainer.models.noise_schedule import per_sample_error

SD15 = Shape(single_file.part_config(shapes(FULL), "unet"), 16, "adamw8bit", 512, 512)
DIGITS = Shape(json.loads((MODEL / "unet" / "config.json").read_text()), 4, "adamw", 256, 256)
MINI = Shape(single_file.part_config(shapes(SMALL), "unet"), 4, "adamw", 256, 256)


def measured_mib(shape, found):
    """Peak of what a real micro-batch allocates on the CPU on top of the model, by torch's profiler."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(shape.unet).requires_grad_(False).eval()
    attach_lora(unet, rank=shape.rank, alpha=shape.rank, seed=0)
    memory_plan.apply_plan(unet, found, device=torch.device("cpu"))
    latents = torch.randn(found.micro_batch, 4, shape.height_px // 8, shape.width_px // 8)
    text = torch.randn(found.micro_batch, 77, shape.unet["cross_attention_dim"])
    t = torch.zeros(found.micro_batch, dtype=torch.long)
    peak = profiled_mib(lambda: per_sample_error(unet(latents, t, text).sample, latents).sum().backward())
    return peak - 4 * sum(p.numel() for p in LoraNetwork(unet).parameters) / 2**20  # without the gradients


def profiled_mib(call):
    """What the allocator gave out at most, by its own events in torch's profiler."""
    gc.collect()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":  # entries carry every allocation and release in order
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


@pytest.mark.parametrize("found", [MemoryPlan("fp32", "fp32"), MemoryPlan("fp32", "fp32", checkpointing=99)], ids=str)
def test_estimate_agrees_with_the_profiler(found):
    """Activations within a tenth, on the small variant of the architecture."""
    assert predict(MINI, found).activations == pytest.approx(measured_mib(MINI, found), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("px", [128, 256])
@pytest.mark.parametrize("checkpointing", [0, 99])
def test_estimate_agrees_with_the_profiler_at_full_shape(px, checkpointing):
    """The whole peak within a tenth; the activations but for what the CPU's convolutions add: a reordered weight."""
    shape = Shape(SD15.unet, 16, "adamw", px, px)
    found = MemoryPlan("fp32", "fp32", checkpointing=checkpointing)
    predicted, measured = predict(shape, found), measured_mib(shape, found)
    held = predicted.weights + predicted.lora
    assert held + predicted.activations == pytest.approx(held + measured, rel=0.1)
    largest = max(4 * torch.Size(s).numel() for s in shapes(FULL).values() if len(s) == 4) / 2**20
    assert 0.9 * predicted.activations <= measured <= 1.1 * predicted.activations + largest


def test_vae_estimate_agrees_with_the_profiler():
    config = single_file.part_config(shapes(SMALL), "vae")
    vae = AutoencoderKL.from_config(config).eval()
    weights = 4 * sum(p.numel() for p in vae.parameters()) / 2**20
    with torch.no_grad():
        encoding = profiled_mib(lambda: vae.encode(torch.zeros(1, 3, 256, 256)))
        decoding = profiled_mib(lambda: vae.decode(torch.zeros(1, 4, 32, 32)))
    found = predict_vae(config, 256, 256)
    assert found == pytest.approx((weights + encoding, weights + decoding), rel=0.1)


def test_weights_are_counted_exactly():
    found = predict(MINI, MemoryPlan("fp16", "fp16"))
    numbers = sum(torch.Size(s).numel() for n, s in shapes(SMALL).items() if n.startswith("model."))
    assert found.weights == pytest.approx(2 * numbers / 2**20, rel=1e-3)


@pytest.mark.long
def test_targets_at_512_px():
    """What the README promises for Stable Diffusion 1.5, LoRA of rank 16 on 192 modules, CUDA's 0.4 GiB included."""
    assert predict(SD15, MemoryPlan("fp16", "fp16")).total > 2.4 * 1024  # so that something has to be saved
    lowvram, _ = planner.choose(SD15, MemoryRequest(1), "fp16", 2.4 * 1024)
    assert (lowvram.weights, lowvram.offload) == ("fp16", 0)
    assert lowvram.checkpointing > 0
    assert predict(SD15, lowvram).total <= 2.4 * 1024
    assert predict(SD15, MemoryPlan("fp16", "fp8", checkpointing=99)).total <= 1.6 * 1024
    assert predict(SD15, MemoryPlan("fp16", "fp8", checkpointing=99, offload=99)).total <= 1.0 * 1024


@pytest.fixture(scope="module")
def chosen():
    """`planner.choose` on the built-in model, where no prediction is made twice."""
    once = functools.cache(lambda found: predict(DIGITS, found))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "predict", lambda shape, found: once(found))
        yield lambda budget, **wanted: planner.choose(DIGITS, MemoryRequest(4, **wanted), "fp16", budget)


@pytest.mark.long
def test_smaller_budgets_get_more_frugal_switches(chosen):
    most = predict(DIGITS, MemoryPlan("fp16", "fp16", micro_batch=4)).total
    least = predict(DIGITS, MemoryPlan("fp16", "fp8", checkpointing=99, offload=99)).total
    seen = []
    for i in range(6):
        budget = most - (most - least) * i / 5
        found, estimate = chosen(budget)
        assert estimate.total <= budget + 0.01
        seen.append((found.micro_batch, -found.checkpointing, found.weights == "fp16", -found.offload))
    assert seen[0] == (4, 0, True, 0)
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) >= 4


def test_what_is_fixed_stays(chosen):
    found, _ = chosen(0, micro_batch=2, weights="fp16")
    assert (found.micro_batch, found.weights) == (2, "fp16")
    found, estimate = chosen(float("inf"), checkpointing="all")
    assert found.micro_batch == 4
    assert found.checkpointing > 3
    assert estimate is None


def test_after_out_of_memory_one_saving_after_the_other_is_taken_whole():
    config, base = TrainConfig(base=str(MODEL), resolution=64), Base(MODEL)
    plan, seen = MemoryPlan("fp16", "fp16", micro_batch=8), []
    while plan := planner.more_frugal(config, base, plan):
        seen.append((plan.micro_batch, plan.checkpointing, plan.weights, plan.offload))
    assert seen == [(1, 9, "fp16", 0), (1, 9, "fp8", 0), (1, 9, "fp8", 5)]
    plan = MemoryPlan("fp16", "fp16", micro_batch=8)
    named = config.model_copy(update={"micro_batch": 8, "checkpointing": 2})
    assert planner.more_frugal(named, base, plan) == replace(plan, weights="fp8")
    assert planner.more_frugal(named, base, plan, fixed={"weights"}) == replace(plan, offload=5)
    assert planner.more_frugal(named, base, plan, fixed={"weights", "offload"}) is None
    whole = config.model_copy(update={"network": "full"})
    assert planner.more_frugal(whole, base, replace(plan, micro_batch=1, checkpointing=9)) is None


@pytest.mark.long
def test_checkpointing_stops_where_it_fits(chosen):
    """Recomputation is spent only where memory forces it: one unit less would not fit."""
    without = predict(DIGITS, MemoryPlan("fp16", "fp16")).total
    whole = predict(DIGITS, MemoryPlan("fp16", "fp16", checkpointing=99)).total
    budget = (without + whole) / 2
    found, estimate = chosen(budget, micro_batch=1)
    assert found.checkpointing >= 1
    less = MemoryPlan("fp16", "fp16", checkpointing=found.checkpointing - 1)
    assert estimate.total <= budget < predict(DIGITS, less).total
