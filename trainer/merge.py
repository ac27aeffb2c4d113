"""Whole models: with the LoRA in them, which then cannot be taken off, or with a U-Net that was trained whole."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import checkpoint, model
from .files import raise_for, replacing
from .libraries import quiet
from .model import Base


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + scale * up @ down, computed in fp32, in W's own shape and number format."""
    return (weight.float() + scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)).to(weight.dtype)


Change = Callable[[str, Tensor], Tensor]  # (diffusers' name of a weight of the U-Net, its value) -> its new value


def of_lora(weights: dict[str, Tensor], *, scale: float) -> Change:
    """Weights with a LoRA in them. Args: weights: by module path (`….down`, `….up`). scale: alpha / rank."""

    def change(name: str, value: Tensor) -> Tensor:
        module = name.removesuffix(".weight")
        down = weights.get(f"{module}.down") if name.endswith(".weight") else None
        return value if down is None else merged(value, down, weights[f"{module}.up"], scale)

    return change


def of_network(weights: dict[str, Tensor]) -> Change:
    """Weights that were trained whole (--network full). Args: weights: by name."""
    return lambda name, value: weights[name].to(value.dtype)


def save_folder(base: Base, folder: Path, change: Change, *, dtype: torch.dtype) -> None:
    """A diffusers folder, whole or absent."""
    pipe = model.load_pipeline(base, model.load_unet(base, torch.float32))
    for name, value in pipe.unet.state_dict().items():
        value.copy_(change(name, value))
    with quiet(), _replacing_folder(folder) as temporary:
        pipe.to(dtype=dtype).save_pretrained(temporary, safe_serialization=True)


@contextlib.contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """A folder beside target, renamed onto it when the block ends well. What a killed process left of it goes first."""
    new, old = (target.with_name(f".{target.name}.{age}") for age in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        yield new
        shared = (new / "model_index.json").stat().st_mode
        for file in (path for path in new.rglob("*") if path.is_file()):
            file.chmod(shared)  # safetensors makes its files private
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():  # a folder cannot be renamed onto one that is not empty
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        raise_for(target, error, new)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def save_checkpoint(base: Base, file: Path, change: Change) -> None:
    """A single file like base's: the same keys, number formats and metadata, only the U-Net's weights changed."""
    with safe_open(base.path, "pt") as source:
        metadata = source.metadata()
        state = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
    for name, key in ldm_names(base).items():
        state[key] = change(name, state[key])
    with replacing(file) as temporary:
        save_file(state, temporary, metadata=metadata)


def ldm_names(base: Base) -> dict[str, str]:
    """diffusers' name of each of the U-Net's weights -> its LDM key: numbered tensors go through its converter."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefix = checkpoint.PREFIXES["unet"]
    keys = [name for name in checkpoint.shapes(base.path, "unet") if name.startswith(prefix)]
    convert: Callable = convert_ldm_unet_checkpoint
    converted = convert({key: torch.tensor(i) for i, key in enumerate(keys)}, model.part_config(base, "unet"))
    return {name: keys[number] for name, number in converted.items()}
