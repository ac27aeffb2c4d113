"""The frozen parts of a Stable Diffusion 1.x model, loaded one at a time from a diffusers folder, offline.

torch is imported by what loads, not by what checks: a wrong --base is answered at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .files import sha256

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def check(base: Path) -> None:
    """Look at the folder without loading it. Raises: UserError saying what is missing or what it is instead."""
    if not base.is_dir():
        raise UserError(
            f"--base: {base} is a file; this version trains on diffusers folders. Convert it once with diffusers: "
            "StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        )
    missing = [part for part in PARTS if not (base / part).is_dir()]
    if missing:
        raise UserError(f"--base: {base} is no diffusers folder of Stable Diffusion 1.x: it lacks {', '.join(missing)}")
    for part in WEIGHTS:
        weights_file(base, part)
    unet = read_config(base, "unet")
    if unet.get("in_channels") != 4 or unet.get("addition_embed_type") or (base / "text_encoder_2").exists():
        raise UserError(f"--base: {base} is no Stable Diffusion 1.x (an inpainting model, SDXL or another family)")
    noise = read_config(base, "scheduler", "scheduler_config.json")
    is_known = noise.get("prediction_type", "epsilon") in ("epsilon", "v_prediction")
    if not is_known or noise.get("beta_schedule") != "scaled_linear":
        raise UserError(f"--base: {base}/scheduler: not the noise schedule of Stable Diffusion 1.x")


def read_config(base: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    try:
        return json.loads((base / part / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--base: cannot read {base / part / name}: {error}") from None


def weights_file(base: Path, part: str) -> Path:
    """The .safetensors of one part, fp16 variant or not. Raises: UserError if there is none; .bin is never opened."""
    stem = WEIGHTS[part]
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (base / part / name).is_file():
            return base / part / name
    raise UserError(f"--base: {base / part} holds no {stem}.safetensors (pickled .bin weights are not opened)")


def part_hash(base: Path, part: str) -> str:
    """sha256 of one part's weights file."""
    return sha256(weights_file(base, part))


def _arguments(base: Path, part: str, dtype: torch.dtype) -> dict[str, Any]:
    variant = "fp16" if weights_file(base, part).name.endswith(".fp16.safetensors") else None
    name = "dtype" if part == "text_encoder" else "torch_dtype"  # transformers' word, diffusers' word
    return {name: dtype, "use_safetensors": True, "local_files_only": True, "variant": variant}


def load_vae(base: Path, dtype: torch.dtype) -> torch.nn.Module:
    """AutoencoderKL, frozen. dtype: fp32 or bf16; fp16 makes nan of some images."""
    from diffusers import AutoencoderKL

    with quiet():
        vae = AutoencoderKL.from_pretrained(base / "vae", **_arguments(base, "vae", dtype))
    return vae.requires_grad_(False).eval()


def load_unet(base: Path, dtype: torch.dtype) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    with quiet():
        unet = UNet2DConditionModel.from_pretrained(base / "unet", **_arguments(base, "unet", dtype))
    return unet.requires_grad_(False).eval()


def load_text_encoder(base: Path, dtype: torch.dtype) -> tuple[Any, torch.nn.Module]:
    """Returns: (CLIPTokenizer, CLIPTextModel)."""
    from transformers import CLIPTextModel, CLIPTokenizer

    arguments = _arguments(base, "text_encoder", dtype)
    with quiet():
        tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(base / "text_encoder", **arguments)
    return tokenizer, encoder.requires_grad_(False).eval()


def load_signal(base: Path) -> tuple[Tensor, str]:
    """Returns: (alphas_cumprod [timesteps] fp32, prediction type)."""
    from .diffusion import alphas_cumprod

    config = read_config(base, "scheduler", "scheduler_config.json")
    signal = alphas_cumprod(config["beta_start"], config["beta_end"], config["num_train_timesteps"])
    return signal, config.get("prediction_type", "epsilon")


def load_pipeline(base: Path, unet: torch.nn.Module | None = None) -> Any:
    """diffusers' StableDiffusionPipeline with a DDIM sampler, in fp32, or around a unet that is already there.

    The VAE is in fp32 whatever the U-Net's type: decode its latents as `sample.pictures` does.
    """
    import torch

    with quiet():
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        unet = load_unet(base, torch.float32) if unet is None else unet
        tokenizer, encoder = load_text_encoder(base, unet.dtype)
        pipe = StableDiffusionPipeline(
            vae=load_vae(base, torch.float32),
            text_encoder=encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler.from_pretrained(base / "scheduler", clip_sample=False, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries report here what is no news to a user (a missing torchvision, the weights they loaded)."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    before = transformers_log.get_verbosity(), diffusers_log.get_verbosity()
    bars = transformers_log.is_progress_bar_enabled()
    transformers_log.set_verbosity_error()
    diffusers_log.set_verbosity(logging.ERROR)
    transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        transformers_log.set_verbosity(before[0])
        diffusers_log.set_verbosity(before[1])
        if bars:
            transformers_log.enable_progress_bar()
