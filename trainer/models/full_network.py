"""The whole network learns, without a LoRA: the same functions as lora.py, for --network full and from scratch."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def attach(unet: nn.Module) -> list[nn.Parameter]:
    """Make every weight trainable, in fp32: half precision would round a step of 1e-5 away.

    Returns: the trainable parameters, in a fixed order.
    """
    unet.float().requires_grad_(True)
    return parameters(unet)


def parameters(unet: nn.Module) -> list[nn.Parameter]:
    """The trainable weights, in a fixed order."""
    return list(unet.parameters())


@contextlib.contextmanager
def disabled(unet: nn.Module) -> Iterator[None]:
    """Nothing can be switched off: the base model is there until the first step, and must be measured before it."""
    yield


def weights(unet: nn.Module) -> dict[str, Tensor]:
    """Every parameter by name, on the CPU, fp32."""
    return {name: value.detach().float().cpu().clone() for name, value in unet.named_parameters()}


@torch.no_grad()
def load_weights(unet: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `weights` returned. Raises: KeyError, RuntimeError if it belongs to another network."""
    for name, value in unet.named_parameters():
        value.copy_(tensors[name])
