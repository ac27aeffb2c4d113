"""What learns inside a U-Net: LoRA layers beside its frozen weights (peft), or every weight of it."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

ADAPTER = "pu"


class TrainedNetwork(Protocol):
    """A U-Net and which of its weights are trained."""

    @property
    def unet(self) -> Any:
        """The diffusers U-Net."""

    @property
    def is_from_scratch(self) -> bool:
        """Whether the U-Net began with random weights: there is no base model whose error could be measured."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained weights, fp32, in a fixed order."""

    def disabled(self) -> AbstractContextManager[None]:
        """Lend the base model, as long as this lasts."""

    def weights(self) -> dict[str, Tensor]:
        """Copy the trained weights. Returns: name -> fp32 tensor on the CPU."""

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `weights` returned. Raises: KeyError, RuntimeError if it belongs to another network."""


def lora_target_names(unet: nn.Module) -> list[str]:
    """List kohya's default targets: every Linear and 1x1 convolution in the transformer blocks (192 in SD 1.5)."""
    names = []
    for path, block in unet.named_modules():
        if type(block).__name__ == "Transformer2DModel":
            names += [f"{path}.{name}" for name, layer in block.named_modules() if _is_lora_target(layer)]
    return names


def _is_lora_target(layer: nn.Module) -> bool:
    # by attribute: diffusers 0.35 has Linear subclasses of its own
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def attach_lora(unet: Any, *, rank: int, alpha: float, seed: int) -> "LoraNetwork":
    """Add LoRA layers that change nothing yet (up = 0, down from Kaiming's uniform distribution).

    Args: rank, alpha: the update is up @ down * alpha / rank. seed: of the initial values.
    """
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # peft divides by the rank: a float is as good
            target_modules=lora_target_names(unet),
        )
        unet.add_adapter(config, adapter_name=ADAPTER)
    network = LoraNetwork(unet)
    for pair in network.pairs().values():
        for layer in pair:
            layer.to(torch.float32).requires_grad_(True)
    return network


@dataclass(frozen=True)
class LoraNetwork:
    """The LoRA layers of a U-Net that `attach_lora` gave them to."""

    unet: Any

    @property
    def is_from_scratch(self) -> bool:
        return False

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [layer.weight for pair in self.pairs().values() for layer in pair]

    def pairs(self) -> dict[str, tuple[Any, Any]]:
        """List the layers. Returns: module path in the plain U-Net -> (down layer, up layer)."""
        found = {}
        for path, layer in self.unet.named_modules():
            if ADAPTER in getattr(layer, "lora_A", {}):
                found[path] = (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
        return found

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch the LoRA off, so that no second U-Net is needed."""
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()

    def weights(self) -> dict[str, Tensor]:
        """Copy the LoRA. Returns: `<module path>.down` and `.up` -> fp32 tensor on the CPU."""
        tensors = {}
        for path, (down, up) in self.pairs().items():
            tensors[f"{path}.down"] = down.weight.detach().float().cpu().clone()
            tensors[f"{path}.up"] = up.weight.detach().float().cpu().clone()
        return tensors

    @torch.no_grad()
    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `weights` returned. Raises: KeyError, RuntimeError if it belongs to another model or rank."""
        for path, (down, up) in self.pairs().items():
            down.weight.copy_(tensors[f"{path}.down"])
            up.weight.copy_(tensors[f"{path}.up"])


def train_whole(unet: Any, *, is_from_scratch: bool = False) -> "FullNetwork":
    """Make every weight trainable, in fp32: half precision would round a step of 1e-5 away."""
    unet.float().requires_grad_(True)
    return FullNetwork(unet, is_from_scratch)


@dataclass(frozen=True)
class FullNetwork:
    """A U-Net that is trained whole: --network full, and the paper's experiments from scratch."""

    unet: Any
    is_from_scratch: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.unet.parameters())

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Do nothing: the base model is gone after the first step, and must be measured before it."""
        yield

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().float().cpu().clone() for name, value in self.unet.named_parameters()}

    @torch.no_grad()
    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        for name, value in self.unet.named_parameters():
            value.copy_(tensors[name])
