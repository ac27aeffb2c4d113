"""Options of the commands that make pictures with a model and a LoRA: `sample` and `evaluate`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from ..builtin import BUILTIN
from .parser import DEVICE, Positive
from .train_config import option

BUILTIN_DEFAULTS = {"resolution": 64, "guidance": 1.0}


def _multiple_of_8(value: Any) -> int:
    if not str(value).isdecimal() or int(value) < 1 or int(value) % 8:
        raise ValueError("must be a multiple of 8")
    return int(value)


Resolution = Annotated[int, BeforeValidator(_multiple_of_8)]


class PictureOptions(BaseModel):
    """Which model, with which LoRA, and how a picture is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    base: str = option(
        BUILTIN, "Stable Diffusion 1.x model: a .safetensors or .ckpt file, a diffusers folder, a hub id, or 'builtin'"
    )
    vae: Path | None = option(
        None, "another VAE than the model's own: a .safetensors, .ckpt or .pt file, or a diffusers folder"
    )
    prediction_type: Literal["auto", "epsilon", "v"] = option(
        "auto", "what the U-Net predicts; auto: as the model's files state, otherwise the noise (epsilon)"
    )
    lora: Path | None = option(None, "LoRA file")
    strength: float = option(1.0, "strength of the LoRA")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", pattern=DEVICE)
    resolution: Resolution = option(512, "side of a picture in pixels [512; 64 for the built-in model]")
    steps: Positive = option(25, "steps of the sampler")
    sampler: Literal["ddim", "pndm", "dpm++", "euler_a"] = option("ddim", "sampler of diffusers")
    negative_prompt: str = option("", "prompt that guidance leads away from; without guidance it does nothing")
    guidance: float = option(7.5, "guidance scale; 1: none [7.5; 1 for the built-in model]")
    clip_skip: Positive = option(1, "layer of the text encoder to read, counted from the last")
    max_token_length: int = option(
        75, "tokens of a prompt that are read: 75, 150 or 225, as the LoRA was trained", ge=75, le=225, multiple_of=75
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_builtin_model(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**BUILTIN_DEFAULTS, **given} if given.get("base", BUILTIN) == BUILTIN else given
