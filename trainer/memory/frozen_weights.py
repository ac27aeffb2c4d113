"""Frozen weights that are stored in fp8 or in CPU memory, and converted or copied when a layer needs them.

diffusers' layerwise casting and group offloading do this for inference only: autograd would keep the fetched copy of
every layer until the backward pass. Here a layer fetches its weight in forward and again in backward, and autograd
keeps nothing. A frozen layer needs no input for its backward pass either: only the gradient of its input is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max  # 448


class Weight:
    """One layer's weight [out, ...] in storage: in `dtype`, or as fp8 with one fp32 scale for each output channel.

    A scale is kept as a factor of 0.5 to 1 and a power of two: fp16 would round the scale of small weights itself.
    """

    def __init__(self, weight: Tensor, *, dtype: torch.dtype, device: torch.device, offloaded: bool) -> None:
        self.offloaded = offloaded
        weight = weight.detach()
        self.scale: Tensor | None = None
        if dtype == FP8:
            largest = weight.float().flatten(1).abs().amax(1).clamp(min=1e-12)
            scale = (largest / FP8_MAX).view(-1, *[1] * (weight.ndim - 1))
            weight = weight.float() / scale
            power = torch.exp2(torch.frexp(scale).exponent.clamp(min=-24).float())  # fp16's smallest number is 2**-24
            self.scale = torch.stack([scale / power, power]).to(device)
        kept = weight.to(device, dtype)
        self.kept = (
            kept.pin_memory() if offloaded and device.type == "cpu" and torch.cuda.is_available() else kept
        )  # pinned: the copy does not wait

    def materialize(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the weight on device in dtype: a temporary copy, or the kept tensor where it already is both."""
        weight = self.kept.to(device, non_blocking=True, copy=self.offloaded)
        if self.scale is None:
            return weight.to(dtype)
        factor, power = self.scale.to(device, dtype, non_blocking=True)
        return weight.to(dtype).mul_(factor).mul_(power)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.materialize(x.device, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.weight.materialize(grad.device, grad.dtype), None, None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None, how: tuple) -> Tensor:
        ctx.weight, ctx.how, ctx.shape = weight, how, x.shape
        return F.conv2d(x, weight.materialize(x.device, x.dtype), bias, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Call the convolution's backward kernel directly: torch.nn.grad.conv2d_input is a percent of a step slower."""
        weight = ctx.weight.materialize(grad.device, grad.dtype)
        shape, (stride, padding, dilation, groups) = grad.new_empty(1).expand(ctx.shape), ctx.how
        found = torch.ops.aten.convolution_backward.default(
            grad, shape, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )
        return found[0], None, None, None


def _arithmetic(x: Tensor) -> torch.dtype:
    """Return the dtype that autocast would use: it does not reach into a custom autograd Function."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class FrozenLayer(nn.Module):
    """Stands for a frozen nn.Linear or nn.Conv2d (zero padding): the same result, its weight kept as `Weight`."""

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, *, dtype: torch.dtype, device: torch.device, offloaded: bool
    ) -> None:
        super().__init__()
        self.weight = Weight(layer.weight, dtype=dtype, device=device, offloaded=offloaded)
        self.bias = layer.bias
        self.how = None
        if isinstance(layer, nn.Conv2d):
            if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
                raise ValueError(f"padding {layer.padding!r}, {layer.padding_mode!r}: only so many zeros are supported")
            self.how = layer.stride, layer.padding, layer.dilation, layer.groups

    def forward(self, x: Tensor, *unused: object) -> Tensor:
        dtype = _arithmetic(x)
        bias = None if self.bias is None else self.bias.to(x.device, dtype)
        if self.how is None:
            return _Linear.apply(x.to(dtype), self.weight, bias)
        return _Conv2d.apply(x.to(dtype), self.weight, bias, self.how)


def freeze(
    parent: nn.Module,
    *,
    dtype: torch.dtype,
    device: torch.device,
    exclude: Iterable[nn.Module],
    offloaded: bool = False,
) -> int:
    """Replace the frozen Linear and Conv2d layers below parent by `FrozenLayer`s.

    Args:
        dtype: of the kept weights; torch.float8_e4m3fn for fp8.
        device: where they are kept.
        exclude: layers that stay as they are, such as the LoRA's own.
        offloaded: kept elsewhere than where the arithmetic is done.
    Returns: how many were replaced.
    """
    spared, count = set(map(id, exclude)), 0
    for module in list(parent.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear | nn.Conv2d) and id(layer) not in spared:
                setattr(module, name, FrozenLayer(layer, dtype=dtype, device=device, offloaded=offloaded))
                count += 1
    return count
