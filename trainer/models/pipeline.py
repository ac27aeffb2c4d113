"""diffusers' pipeline around our parts: samplers, and LoRA files as any user of diffusers loads them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from ..common.third_party import quiet
from .base_model import Base, load_text_encoder, load_unet, load_vae, scheduler_config

if TYPE_CHECKING:
    import torch


def load_pipeline(base: Base, unet: torch.nn.Module | None = None) -> Any:
    """Load diffusers' StableDiffusionPipeline with a DDIM sampler, in fp32, or around a given unet.

    Text encoder and VAE are in fp32 on the CPU whatever the U-Net's type and place: see `generate_pictures`.
    """
    import torch

    with quiet():
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        unet = load_unet(base, torch.float32) if unet is None else unet
        tokenizer, encoder = load_text_encoder(base, torch.float32)
        pipe: Any = StableDiffusionPipeline(
            vae=load_vae(base, torch.float32),
            text_encoder=encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler.from_config(scheduler_config(base)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Our name -> diffusers' scheduler, with settings beside those of the noise schedule.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as in Stable Diffusion 1.x
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),  # known as DPM++ 2M
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
}
ZERO_SNR = "rescale_betas_zero_snr"  # a setting of a noise schedule, in diffusers' words


def set_sampler(pipe: Any, name: str) -> None:
    """Give the pipeline a sampler on the same noise schedule, unless it has this one.

    Args: name: of SAMPLERS.
    Raises: UserError if the schedule has a zero terminal SNR, and the sampler would ignore that.
    """
    import diffusers

    from ..common.third_party import quiet

    kind, settings = SAMPLERS[name]
    if type(pipe.scheduler).__name__ == kind:
        return
    takes = inspect.signature(getattr(diffusers, kind).__init__).parameters
    if pipe.scheduler.config.get(ZERO_SNR) and ZERO_SNR not in takes:
        raise UserError(f"--sampler {name}: knows no zero terminal SNR, which this model has; leave it out for ddim")
    with quiet():  # which settings of the old one the new one has no use for
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **settings)


def add_lora(pipe: Any, path: Path, strength: float) -> None:
    """Load a LoRA file as any user of diffusers does; other trainers' names are taken too, see `lora_file.read`.

    Raises: UserError if it does not fit the model, wholly or in part.
    """
    from . import lora_file  # imports torch

    tensors = lora_file.read(path)
    _check_fit(pipe, path, tensors)
    try:
        with quiet():
            pipe.load_lora_weights(tensors)
    except Exception as error:  # diffusers, peft and safetensors each raise their own
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"--lora: {path} cannot be used with this model ({reason})") from None
    if not lora_names(pipe):
        raise UserError(f"--lora: {path} has nothing for this model: no part of it was taken")
    pipe.set_adapters(lora_names(pipe), strength)


def lora_names(pipe: Any) -> list[str]:
    """List the LoRAs that were added, to the U-Net, the text encoder or both."""
    return sorted({name for names in pipe.get_list_adapters().values() for name in names})


def _check_fit(pipe: Any, path: Path, tensors: dict[str, Any]) -> None:
    """Raise UserError if a LoRA's layer does not fit the U-Net's layer of that name."""
    from .lora_file import UNET_PREFIX, kohya_name

    layers = {kohya_name(name): layer for name, layer in pipe.unet.named_modules()}
    for key, value in tensors.items():
        name, _, side = key.partition(".")
        if not name.startswith(UNET_PREFIX) or side not in ("lora_down.weight", "lora_up.weight"):
            continue
        weight = getattr(layers.get(name), "weight", None)
        if weight is None:
            if re.match(r"lora_unet_(input|middle|output)_block", name):
                return  # LDM's names: diffusers renames them
            raise UserError(f"--lora: {path} is a LoRA for another model: this one has no {name}")
        axis = 1 if side.startswith("lora_down") else 0
        if value.shape[axis] != weight.shape[axis]:
            found = f"{value.shape[axis]} wide there, {weight.shape[axis]} in this model"
            raise UserError(f"--lora: {path} is a LoRA for another model: {key} is {found}")
