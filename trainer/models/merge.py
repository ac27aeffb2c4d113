"""Save whole models: with the LoRA merged into the weights, or with a U-Net that was trained whole."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..common.files import replacing, replacing_folder
from ..common.third_party import quiet
from . import base_model, pipeline, single_file
from .base_model import Base


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return W + scale * up @ down, computed in fp32, in W's own shape and number format."""
    return (weight.float() + scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)).to(weight.dtype)


Change = Callable[[str, Tensor], Tensor]  # (diffusers' name of a weight of the U-Net, its value) -> its new value


def of_lora(weights: dict[str, Tensor], *, scale: float) -> Change:
    """Return the change that merges a LoRA. Args: weights: by module path (`….down`, `….up`). scale: alpha / rank."""

    def change(name: str, value: Tensor) -> Tensor:
        module = name.removesuffix(".weight")
        down = weights.get(f"{module}.down") if name.endswith(".weight") else None
        return value if down is None else merged(value, down, weights[f"{module}.up"], scale)

    return change


def of_network(weights: dict[str, Tensor]) -> Change:
    """Return the change that puts fully trained weights in place (--network full). Args: weights: by name."""
    return lambda name, value: weights[name].to(value.dtype)


def save_folder(base: Base, folder: Path, change: Change, *, dtype: torch.dtype) -> None:
    """Save a diffusers folder, whole or not at all."""
    pipe = pipeline.load_pipeline(base, base_model.load_unet(base, torch.float32))
    for name, value in pipe.unet.state_dict().items():
        value.copy_(change(name, value))
    with quiet(), replacing_folder(folder) as temporary:
        pipe.to(dtype=dtype).save_pretrained(temporary, safe_serialization=True)


def save_checkpoint(base: Base, file: Path, change: Change) -> None:
    """Save a single file like base's: the same keys, number formats and metadata, only the U-Net's weights changed."""
    with safe_open(base.path, "pt") as source:
        metadata = source.metadata()
        state = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    if any(name.endswith(single_file.SCALE) for name in state):  # fp8 with scales, which the change knows nothing of
        state = {name: _plain(value) for name, value in single_file.unscaled(state).items()}
    for name, key in ldm_names(base).items():
        state[key] = change(name, state[key])
    with replacing(file) as temporary:
        save_file(state, temporary, metadata=metadata)


def _plain(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def ldm_names(base: Base) -> dict[str, str]:
    """Map diffusers' name of each U-Net weight to its LDM key, by sending numbered tensors through the converter."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefix = single_file.PREFIXES["unet"]
    keys = [
        name
        for name in single_file.shapes(base.path, "unet")
        if name.startswith(prefix) and not name.endswith((single_file.SCALE, ".scale_input"))
    ]
    convert: Callable = convert_ldm_unet_checkpoint
    converted = convert({key: torch.tensor(i) for i, key in enumerate(keys)}, base_model.part_config(base, "unet"))
    return {name: keys[number] for name, number in converted.items()}
