"""Will it fit? Choose a memory plan whose predicted peak fits the GPU; the `plan` command."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from typing import Any

from ..builtin import CONFIG
from ..common import errors
from ..common.events import EventWriter
from ..config.arguments import parse
from ..config.train_config import TrainConfig
from ..models import base_model, hub
from ..models.base_model import Base
from . import devices, memory_plan
from .estimator import Estimate, Shape, build, predict_vae
from .memory_plan import MemoryPlan
from .prediction_cache import predict


@dataclass(frozen=True)
class MemoryRequest:
    """The memory settings that the user fixed, and those left to choose ("auto")."""

    batch: int  # samples of one step: more are never in the model at once
    micro_batch: int | str = "auto"
    checkpointing: int | str = "auto"
    weights: str = "auto"
    offload: int | str = "auto"
    attention: str = "sdpa"


def resolve(config: TrainConfig, base: Base, precision: str, budget_mib: float) -> tuple[MemoryPlan, Estimate | None]:
    """Choose the memory plan for the settings of a run, see `choose`."""
    batch = config.batch_unlabeled + (config.batch_sensitive if config.objective != "unsupervised" else 0)
    weights, offload = ("fp32", 0) if config.network == "full" else (config.weights, config.offload)
    wanted = MemoryRequest(batch, config.micro_batch, config.checkpointing, weights, offload, config.attention)
    return choose(shape_of(config, base), wanted, precision, budget_mib)


def shape_of(config: TrainConfig, base: Base) -> Shape:
    unet, side = base_model.part_config(base, "unet"), config.resolution
    return Shape(unet, config.rank, config.optimizer, side, side, config.network, config.max_token_length + 2)


def choose(
    shape: Shape, wanted: MemoryRequest, precision: str, budget_mib: float
) -> tuple[MemoryPlan, Estimate | None]:
    """Return the fastest memory plan whose predicted peak fits the budget, otherwise the one that needs least memory.

    Args: budget_mib: infinite: nothing is saved, and nothing predicted.

    In this order: fewer samples at once (costs least), more checkpointing (a third more arithmetic at most), fp8
    weights, blocks in CPU memory (every weight crosses the bus twice a micro-batch).
    """
    estimates: dict[MemoryPlan, Estimate] = {}

    def fits(found: MemoryPlan) -> bool:
        if found not in estimates:
            estimates[found] = predict(shape, found)
        return estimates[found].total <= budget_mib

    for tier in _tiers(shape, wanted, precision):
        if budget_mib == float("inf"):
            return tier[0], None
        if fits(tier[0]):
            return tier[0], estimates[tier[0]]
        last = tier[-1]
        if fits(last):
            first = bisect.bisect_left(tier, True, key=fits)
            return tier[first], estimates[tier[first]]
    return last, estimates[last]


def _tiers(shape: Shape, wanted: MemoryRequest, precision: str) -> Iterator[list[MemoryPlan]]:
    """Yield lists of plans from fast to frugal; within a list one setting changes and memory falls."""
    micro = _halves(wanted.batch) if wanted.micro_batch == "auto" else [min(int(wanted.micro_batch), wanted.batch)]
    weights = [precision, "fp8"] if wanted.weights == "auto" else [wanted.weights]

    def at(micro_batch: int, checkpointing: int, weights: str, offload: int) -> MemoryPlan:
        return MemoryPlan(precision, weights, checkpointing, offload, wanted.attention, micro_batch)

    if starts_with_none := {wanted.checkpointing, wanted.offload} <= {"auto", 0}:  # then nothing has to be counted
        yield [at(m, 0, weights[0], 0) for m in micro]
    unet = build(shape, MemoryPlan(precision, precision))
    checkpointing = _options(wanted.checkpointing, len(memory_plan.checkpoint_units(unet)))
    offload = _options(wanted.offload, len(memory_plan.offload_blocks(unet)))
    if not starts_with_none:
        yield [at(m, checkpointing[0], weights[0], offload[0]) for m in micro]
    for kept in weights:
        yield [at(micro[-1], n, kept, offload[0]) for n in checkpointing]
    yield [at(micro[-1], checkpointing[-1], weights[-1], n) for n in offload]


def _options(wanted: int | str, most: int) -> list[int]:
    if wanted == "auto":
        return list(range(most + 1))
    return [most if wanted == "all" else min(int(wanted), most)]


def _halves(n: int) -> list[int]:
    return [n] if n == 1 else [n, *_halves((n + 1) // 2)]


def more_frugal(
    config: TrainConfig, base: Base, plan: MemoryPlan, *, fixed: Set[str] = frozenset()
) -> MemoryPlan | None:
    """Return the next plan that needs less memory, after a real out-of-memory; None if nothing is left to save.

    Each saving is taken whole: to find out that a little of it was not enough takes another start.

    Args: fixed: fields of the plan that must stay, beside those that the settings name.
    """
    unet = build(shape_of(config, base), plan)
    units, blocks = len(memory_plan.checkpoint_units(unet)), len(memory_plan.offload_blocks(unet))
    savings: list[dict[str, Any]] = [{"micro_batch": 1, "checkpointing": units}]
    if config.network == "lora":
        savings += [{"weights": "fp8"}, {"offload": blocks}]
    for saving in savings:
        free = {k: v for k, v in saving.items() if getattr(config, k) == "auto" and k not in fixed}
        if (found := replace(plan, **free)) != plan:
            return found
    return None


def advice(config: TrainConfig, base: Base, events: Sequence[Mapping[str, Any]]) -> str:
    """Name the memory saving that is still off and would help most, after a real out-of-memory.

    Args: events: of the run so far, which tell how far it came, and with which switches.
    """
    device = devices.choose_device(config.device)
    phases = [e["name"] for e in events if e["event"] == "phase"]
    if phases and phases[-1] == "encode":
        return "It was while images were encoded: a smaller --resolution is left, or to close what else uses the card."
    found = [e.get("switches", e) for e in events if "switches" in e or e.get("name") == "train"]
    if found:
        now = MemoryPlan(**{field.name: found[-1][field.name] for field in fields(MemoryPlan)})
    else:
        now = resolve(config, base, devices.choose_precision(config.precision, device), float("inf"))[0]
    shape = shape_of(config, base)
    before = predict(shape, now).total
    unet = build(shape, now)
    units, blocks = len(memory_plan.checkpoint_units(unet)), len(memory_plan.offload_blocks(unet))
    savings = {
        "--micro-batch 1": replace(now, micro_batch=1),
        "--checkpointing all": replace(now, checkpointing=units),
    }
    if config.network == "lora":
        if not any(e["event"] == "step" for e in events):  # a resumed run must keep its number formats
            savings["--weights fp8"] = replace(now, weights="fp8")
        if device.type == "cuda":  # elsewhere the weights are in that memory already
            savings["--offload all"] = replace(now, offload=blocks)
    after = {words: predict(shape, found).total for words, found in savings.items() if found != now}
    if not after or min(after.values()) > 0.99 * before:
        return "Every saving is on: a smaller --resolution or --rank is left."
    best = min(after, key=lambda words: after[words])
    return f"Largest saving still off: {best} (predicted peak {after[best]:.0f} instead of {before:.0f} MiB)."


def main(argv: Sequence[str]) -> int:
    """Run the `plan` command: the memory that a run with these settings needs.

    Returns: exit code; 3 where it does not fit.
    """
    invocation = parse(argv, CONFIG, needs_images=False)
    config = invocation.config
    assert config.base is not None  # parse refuses a command line without a model
    base = Base(hub.resolve_model_path(config.base), config.vae, config.prediction_type)
    base_model.check(base, clip_skip=config.clip_skip)
    device = devices.choose_device(config.device)
    is_here = device.type == "cuda"
    # without a card here, the plan is for one elsewhere, which computes in half precision
    precision = devices.choose_precision(config.precision, device) if is_here else _or_half(config.precision)
    budget = devices.budget_mib(device, config.vram_budget) if is_here else (config.vram_budget or 1e6) * 1024
    found, estimate = resolve(config, base, precision, budget)
    assert estimate is not None  # the budget is finite
    encoding, decoding = predict_vae(base_model.part_config(base, "vae"), config.resolution, config.resolution)
    before, after = encoding + estimate.context, estimate.weights + decoding + estimate.context
    lines = [*table(found, estimate), _row("before it, encoding", before), _row("after it, making pictures", after)]
    fits = max(estimate.total, before) <= budget
    if after > budget:
        lines.append("pictures are decoded on the CPU where the card is too small for it")
    if is_here or config.vram_budget:
        lines.append(f"{'fits into' if fits else 'does not fit into'} {budget / 1024:.1f} GiB")
    if invocation.events:
        known = budget / 1024 if is_here or config.vram_budget else None
        EventWriter(is_on=True).emit("plan", fits=fits, budget_gib=known, lines=lines)
        return errors.DONE  # the answer is the event; a node shows it either way
    print("\n".join(lines))
    return errors.DONE if fits else errors.OUT_OF_MEMORY


def _or_half(precision: str) -> str:
    return "fp16" if precision == "auto" else precision


def table(found: MemoryPlan, estimate: Estimate) -> list[str]:
    """Return lines for the screen: the chosen settings, then the peak memory by part."""
    rows = {
        "frozen weights": estimate.weights,
        "trained, gradients, optimizer": estimate.lora,
        "activations and workspace": estimate.activations,
        "CUDA itself (counted as)": estimate.context,
        "peak": estimate.total,
    }
    return [describe(found), *(_row(name, mib) for name, mib in rows.items())]


def describe(plan: MemoryPlan) -> str:
    """Return a plan's settings in words."""
    formats = f"micro-batch {plan.micro_batch}, weights {plan.weights}, arithmetic {plan.precision}"
    return f"{formats}, {plan.checkpointing} parts checkpointed, {plan.offload} blocks in CPU memory"


def _row(name: str, mib: float) -> str:
    return f"  {name:<28}{mib:8.0f} MiB"
