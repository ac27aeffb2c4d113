"""The memory plan of the U-Net: number formats, activation checkpointing, offload, attention, micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.networks import LoraNetwork
from . import frozen_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": frozen_weights.FP8}


@dataclass(frozen=True)
class MemoryPlan:
    """How one U-Net is held and run."""

    precision: str  # of the arithmetic: fp32, bf16, fp16
    weights: str  # of the frozen weights at rest: the same, or fp8
    checkpointing: int = 0  # units whose activations are computed again in the backward pass
    offload: int = 0  # blocks whose frozen weights stay in CPU memory
    attention: str = "sdpa"
    micro_batch: int = 1

    @property
    def load_dtype(self) -> torch.dtype:
        return DTYPES[self.precision if self.weights == "fp8" else self.weights]


def checkpoint_units(unet: Any) -> list[Any]:
    """List the parts that can be recomputed on their own, those first that free most memory for the least arithmetic.

    A unit is a transformer or the resnets of one block. Activations grow with the area, arithmetic with the square of
    the channels: so from the outermost resolution inwards.
    """
    found = []
    for depth, group in _by_depth(unet):
        units = [m for block in group for m in block.modules() if hasattr(m, "gradient_checkpointing")]
        found += [(depth, unit) for unit in units]
    return [unit for _, unit in sorted(found, key=lambda pair: pair[0])]


def _by_depth(unet: Any) -> list[tuple[int, list[Any]]]:
    """Group blocks by how often the picture was halved before them."""
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    last = len(down) - 1
    pairs = [(i, [block]) for i, block in enumerate(down)] + [(last - i, [block]) for i, block in enumerate(up)]
    return [*pairs, (last, [unet.mid_block])]


def offload_blocks(unet: Any) -> list[Any]:
    """List blocks in the order in which they are offloaded: those first that hold most weight and are used at low
    resolution, where the copy of a weight costs least beside the arithmetic."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return sorted(blocks, key=lambda block: -sum(p.numel() for p in block.parameters()))


def apply_plan(
    unet: Any,
    plan: MemoryPlan,
    *,
    device: torch.device,
    offload_device: torch.device = torch.device("cpu"),  # noqa: B008
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Set up a U-Net with its LoRA attached for training on device.

    Args: offload_device: where offloaded weights stay. warn: called with one line when xformers does not work.
    """
    layers = [layer for pair in LoraNetwork(unet).pairs().values() for layer in pair]
    compute, kept = DTYPES[plan.precision], DTYPES[plan.weights]
    for block in offload_blocks(unet)[: plan.offload]:
        frozen_weights.freeze(block, dtype=kept, device=offload_device, exclude=layers, offloaded=True)
    # also where the weight stays as it is: a plain convolution keeps its input for an unneeded weight gradient;
    # a linear layer does not
    linear = [m for m in unet.modules() if isinstance(m, nn.Linear)] if kept == compute else []
    frozen_weights.freeze(unet, dtype=kept, device=device, exclude=[*layers, *linear])
    for module in unet.modules():
        if hasattr(module, "cast_input_dtype_enabled"):  # peft's layers: each would keep an fp32 copy of its input
            module.cast_input_dtype_enabled = compute == torch.float32
    trained = {id(p) for layer in layers for p in layer.parameters()}
    for parameter in unet.parameters():
        if id(parameter) not in trained:
            parameter.data = parameter.data.to(compute)
    if compute != torch.float32:
        _plain_norms(unet)
    apply_plan_to_trained(unet, plan, device=device, warn=warn)


def apply_plan_to_trained(
    unet: Any, plan: MemoryPlan, *, device: torch.device, warn: Callable[[str], None] = lambda text: None
) -> None:
    """Apply device, activation checkpointing and attention: the whole plan where every weight is trained."""
    unet.to(device)
    _set_checkpointing(unet, plan.checkpointing)
    if plan.attention == "xformers":
        _use_xformers(unet, device, DTYPES[plan.precision], warn)


def _plain_norms(unet: Any) -> None:
    """Run norms in the U-Net's own number format, as at inference; their sums are fp32 inside the kernel anyway.

    CUDA's autocast would make their outputs fp32, and everything that autograd keeps of them twice as large.
    """
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            # on this module only
            module.forward = _without_autocast(module.forward)  # type: ignore[method-assign, assignment]


def _without_autocast(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x)

    return call


def _set_checkpointing(unet: Any, count: int) -> None:
    if not count:
        unet.disable_gradient_checkpointing()
        return
    unet.enable_gradient_checkpointing()
    for unit in checkpoint_units(unet)[count:]:
        unit.gradient_checkpointing = False


def _use_xformers(unet: Any, device: torch.device, dtype: torch.dtype, warn: Callable[[str], None]) -> None:
    """Switch to xformers if a forward and backward pass of it works here; otherwise stay with torch's own (sdpa)."""
    try:
        import xformers.ops

        for width in (40, 80, 160):  # of the heads in Stable Diffusion 1.x: not every card has a kernel for the last
            q = torch.randn(1, 16, 1, width, device=device, dtype=dtype, requires_grad=True)
            xformers.ops.memory_efficient_attention(q, q, q).sum().backward()
        unet.enable_xformers_memory_efficient_attention()
    except Exception as error:  # missing, built for another torch, or without a kernel for this card
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warn(f"xformers is not usable here ({reason}); attention stays with torch's sdpa")
