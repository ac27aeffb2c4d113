"""LoRA layers on a frozen U-Net (peft): attach, switch off for the base model's view, read and write the weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

ADAPTER = "pu"


def target_names(unet: nn.Module) -> list[str]:
    """Paths of kohya's default targets: every Linear and 1x1 convolution in the transformer blocks (192 in SD 1.5)."""
    names = []
    for path, block in unet.named_modules():
        if type(block).__name__ == "Transformer2DModel":
            names += [f"{path}.{name}" for name, layer in block.named_modules() if _is_target(layer)]
    return names


def _is_target(layer: nn.Module) -> bool:
    # by attribute: diffusers 0.35 has Linear subclasses of its own
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def attach(unet: nn.Module, *, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Add LoRA layers that change nothing yet (up = 0, down from Kaiming's uniform distribution).

    Args: rank, alpha: the update is up @ down * alpha / rank. seed: of the initial values.
    Returns: the trainable parameters, fp32, in a fixed order.
    """
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=target_names(unet)), adapter_name=ADAPTER)
    for pair in pairs(unet).values():
        for layer in pair:
            layer.to(torch.float32).requires_grad_(True)
    return parameters(unet)


def parameters(unet: nn.Module) -> list[nn.Parameter]:
    """The trainable weights, in a fixed order."""
    return [layer.weight for pair in pairs(unet).values() for layer in pair]


def pairs(unet: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Module path in the plain U-Net -> (down layer, up layer)."""
    found = {}
    for path, layer in unet.named_modules():
        if ADAPTER in getattr(layer, "lora_A", {}):
            found[path] = (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
    return found


@contextlib.contextmanager
def disabled(unet: nn.Module) -> Iterator[None]:
    """The base model, borrowed: no second U-Net is needed."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def weights(unet: nn.Module) -> dict[str, Tensor]:
    """`<module path>.down` and `.up` -> weight on the CPU, fp32."""
    tensors = {}
    for path, (down, up) in pairs(unet).items():
        tensors[f"{path}.down"] = down.weight.detach().float().cpu().clone()
        tensors[f"{path}.up"] = up.weight.detach().float().cpu().clone()
    return tensors


@torch.no_grad()
def load_weights(unet: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `weights` returned. Raises: KeyError, RuntimeError if it belongs to another model or rank."""
    for path, (down, up) in pairs(unet).items():
        down.weight.copy_(tensors[f"{path}.down"])
        up.weight.copy_(tensors[f"{path}.up"])
