"""The model with the LoRA in it: a LoRA can be taken off, merged weights cannot."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import checkpoint, model
from .files import replacing
from .libraries import quiet
from .model import Base


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale * up @ down, computed in fp32, in W's own shape and number format."""
    return (weight.float() + scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)).to(weight.dtype)


def save_folder(base: Base, folder: Path, weights: dict[str, Tensor], *, scale: float, dtype: torch.dtype) -> None:
    """A diffusers folder. Args: weights: by module path (`….down`, `….up`). scale: alpha / rank."""
    pipe = model.load_pipeline(base, model.load_unet(base, torch.float32))
    state = pipe.unet.state_dict()
    for module, down, up in _pairs(weights):
        state[f"{module}.weight"].copy_(merged(state[f"{module}.weight"], down, up, scale))
    with quiet():
        pipe.to(dtype=dtype).save_pretrained(folder, safe_serialization=True)


def save_checkpoint(base: Base, file: Path, weights: dict[str, Tensor], *, scale: float) -> None:
    """A single file like base's: the same keys, number formats and metadata, only the LoRA's modules changed."""
    with safe_open(base.path, "pt") as source:
        metadata = source.metadata()
        state = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    names = ldm_names(base)
    for module, down, up in _pairs(weights):
        name = names[f"{module}.weight"]
        state[name] = merged(state[name], down, up, scale)
    with replacing(file) as temporary:
        save_file(state, temporary, metadata=metadata)


def ldm_names(base: Base) -> dict[str, str]:
    """diffusers' name of each of the U-Net's weights -> its LDM key: numbered tensors go through its converter."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefix = checkpoint.PREFIXES["unet"]
    keys = [name for name in checkpoint.shapes(base.path) if name.startswith(prefix)]
    convert: Callable = convert_ldm_unet_checkpoint
    converted = convert({key: torch.tensor(i) for i, key in enumerate(keys)}, model.part_config(base, "unet"))
    return {name: keys[number] for name, number in converted.items()}


def _pairs(weights: dict[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    modules = [key.removesuffix(".down") for key in weights if key.endswith(".down")]
    return [(module, weights[f"{module}.down"], weights[f"{module}.up"]) for module in modules]
