"""Makes pictures with a diffusers pipeline, with or without a LoRA, in as little memory as a training."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.interrupts import Check
from ..config.picture_options import PictureOptions

PIXELS_AT_ONCE = 640**2  # one 512 px picture, or a hundred of 64 px


@dataclass(frozen=True)
class PictureSettings:
    """Settings that change a picture, beside model, prompt and seed."""

    resolution: int  # side in pixels
    steps: int  # of the sampler
    guidance: float  # classifier-free guidance scale; 1: none
    clip_skip: int = 1  # layer of the text encoder, counted from the last; as in training
    negative: str = ""  # prompt that guidance leads away from
    max_tokens: int = 75  # of a prompt, as in training
    sampler: str = "ddim"  # of pipeline.SAMPLERS


def settings_of(options: PictureOptions) -> PictureSettings:
    """Return what a command's options say about its pictures."""
    return PictureSettings(
        options.resolution,
        options.steps,
        options.guidance,
        options.clip_skip,
        options.negative_prompt,
        options.max_token_length,
        options.sampler,
    )


def generate_pictures(
    pipe: Any,
    prompt: str,
    seeds: Sequence[int],
    settings: PictureSettings,
    *,
    at_once: int | None = None,
    check: Check = lambda: None,
) -> np.ndarray:
    """Make one picture for each seed. A seed gives the same initial noise in every batch and on every device.

    Text encoder and VAE are on the U-Net's device only while they work: pictures must fit where the training did.

    Args:
        pipe: from pipeline.load_pipeline.
        at_once: pictures in the U-Net at once; None: PIXELS_AT_ONCE, which fits where a training fits.
        check: called before each sampler step; may raise Stopped.
    Returns: [n, resolution, resolution, 3] uint8.
    """
    import torch

    from ..models import pipeline
    from ..models.text_states import text_states

    pipeline.set_sampler(pipe, settings.sampler)
    few = max(1, PIXELS_AT_ONCE // settings.resolution**2)
    size = at_once or few
    shape = (1, pipe.unet.config.in_channels, settings.resolution // 8, settings.resolution // 8)
    prompts = [prompt] if settings.guidance == 1 else [settings.negative, prompt]
    made = []
    with torch.no_grad():
        # where the text encoder is: it is quick
        how = {"clip_skip": settings.clip_skip, "max_tokens": settings.max_tokens}
        states = text_states(pipe.tokenizer, pipe.text_encoder, prompts, **how)
        states = states.to(pipe.unet.device, pipe.unet.dtype)
        for i in range(0, len(seeds), size):
            sources = [torch.Generator().manual_seed(s) for s in seeds[i : i + size]]
            latents = torch.cat([torch.randn(shape, generator=source) for source in sources])
            latents = _denoise(pipe, latents, states, settings, sources, check)
            made += [_decode(pipe, part) for part in latents.split(few)]
    return np.concatenate(made)


def _denoise(pipe: Any, latents: Any, states: Any, settings: PictureSettings, sources: list[Any], check: Check) -> Any:
    """Denoise latents by the pipeline's scheduler, with classifier-free guidance. Returns: [n, 4, h, w] fp32.

    Args: sources: one generator for each picture, for samplers that add noise: the batch size changes no picture.
    """
    import torch

    takes_noise = "generator" in inspect.signature(pipe.scheduler.step).parameters
    more = {"generator": sources} if takes_noise else {}
    device, dtype = pipe.unet.device, pipe.unet.dtype
    n, kinds = len(latents), len(states)
    text = states.repeat_interleave(n, dim=0)
    pipe.scheduler.set_timesteps(settings.steps)
    latents = latents.to(device) * pipe.scheduler.init_noise_sigma
    for t in pipe.scheduler.timesteps:
        check()
        x = pipe.scheduler.scale_model_input(torch.cat([latents] * kinds), t)
        # the LoRA is fp32 beside a half-precision U-Net, as in training
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            predicted = pipe.unet(x.to(dtype), t.to(device), text).sample.float()
        if kinds == 2:
            without, with_prompt = predicted.chunk(2)
            predicted = without + settings.guidance * (with_prompt - without)
        latents = pipe.scheduler.step(predicted, t, latents, **more).prev_sample
    return latents


def _decode(pipe: Any, latents: Any) -> np.ndarray:
    """Decode latents [n, 4, h, w] to pictures [n, 8h, 8w, 3] uint8, in fp32.

    The VAE needs 1.1 GiB for 512 px, more than a frugal training: if the latents' device runs out of memory, it decodes
    on the CPU. Afterwards it returns to the CPU in any case.
    """
    from ..memory.devices import is_out_of_memory

    latents = latents / pipe.vae.config.scaling_factor
    try:
        images = pipe.vae.to(latents.device).decode(latents).sample
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        images = None  # retried below: inside `except`, the exception still holds the memory
    pipe.vae.to("cpu")
    if images is None:
        images = pipe.vae.decode(latents.cpu()).sample
    return (images.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
