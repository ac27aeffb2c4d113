"""Pictures from a model, with or without a LoRA: diffusers' pipeline and DDIM sampler. Also the `sample` command."""

import inspect
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import sample_options
from .errors import UserError
from .files import replacing

PIXELS_AT_ONCE = 640**2  # one 512 px picture, or a hundred of 64 px
# Our name -> diffusers' scheduler, with settings beside those of the noise schedule.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as in Stable Diffusion 1.x
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),  # known as DPM++ 2M
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
}


def set_sampler(pipe: Any, name: str) -> None:
    """Put another sampler in the place of the pipeline's, on the same noise schedule. Args: name: of SAMPLERS."""
    import diffusers

    from .libraries import quiet

    kind, settings = SAMPLERS[name]
    with quiet():  # which settings of the old one the new one has no use for
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **settings)


def pictures(
    pipe: Any,
    prompt: str,
    *,
    seeds: Sequence[int],
    resolution: int,
    steps: int,
    guidance: float,
    negative: str = "",
    clip_skip: int = 1,
    at_once: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """One picture for each seed; the same seed starts from the same noise in every batch and on every device.

    The parts work one after the other where the U-Net is, and text encoder and VAE make room again: the pictures of a
    run must fit where its training did.

    Args:
        pipe: from model.load_pipeline. guidance: 1 means none. clip_skip: as in training.
        negative: prompt that guidance leads away from.
        at_once: pictures in the U-Net at once; None: as few as a training has room for.
        check: called before each sampler step; may raise.
    Returns: [n, resolution, resolution, 3] uint8.
    """
    import torch

    from .encode import text_states

    few = max(1, PIXELS_AT_ONCE // resolution**2)
    size = at_once or few
    shape = (1, pipe.unet.config.in_channels, resolution // 8, resolution // 8)
    prompts = [prompt] if guidance == 1 else [negative, prompt]
    made = []
    with torch.no_grad():
        states = text_states(pipe.tokenizer, pipe.text_encoder, prompts, clip_skip)  # where it is: it is quick
        states = states.to(pipe.unet.device, pipe.unet.dtype)
        for i in range(0, len(seeds), size):
            sources = [torch.Generator().manual_seed(s) for s in seeds[i : i + size]]
            latents = torch.cat([torch.randn(shape, generator=source) for source in sources])
            latents = _denoise(pipe, latents, states, steps, guidance, sources, check)
            made += [_decode(pipe, part) for part in latents.split(few)]
    return np.concatenate(made)


def _denoise(
    pipe: Any, latents: Any, states: Any, steps: int, guidance: float, sources: list[Any], check: Callable[[], None]
) -> Any:
    """Noise -> latents [n, 4, h, w] fp32 by the pipeline's scheduler, with classifier-free guidance.

    Args: sources: a generator for each picture, from which samplers that add noise take it: batches change nothing.
    """
    import torch

    takes_noise = "generator" in inspect.signature(pipe.scheduler.step).parameters
    more = {"generator": sources} if takes_noise else {}
    device, dtype = pipe.unet.device, pipe.unet.dtype
    n, kinds = len(latents), len(states)
    text = states.repeat_interleave(n, dim=0)
    pipe.scheduler.set_timesteps(steps)
    latents = latents.to(device) * pipe.scheduler.init_noise_sigma
    for t in pipe.scheduler.timesteps:
        check()
        x = pipe.scheduler.scale_model_input(torch.cat([latents] * kinds), t)
        # the LoRA is fp32 beside a half-precision U-Net, as in training
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            predicted = pipe.unet(x.to(dtype), t.to(device), text).sample.float()
        if kinds == 2:
            without, with_prompt = predicted.chunk(2)
            predicted = without + guidance * (with_prompt - without)
        latents = pipe.scheduler.step(predicted, t, latents, **more).prev_sample
    return latents


def _decode(pipe: Any, latents: Any) -> np.ndarray:
    """[n, 4, h, w] -> [n, 8h, 8w, 3] uint8, in fp32 where the latents are, or on the CPU where that is too small.

    Then the VAE goes back to the CPU. It takes more than a frugal training does: 1.1 GiB for 512 px.
    """
    from .memory import is_out_of_memory

    latents = latents / pipe.vae.config.scaling_factor
    try:
        images = pipe.vae.to(latents.device).decode(latents).sample
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        images = None  # not here: what failed is held as long as the exception is
    pipe.vae.to("cpu")
    if images is None:
        images = pipe.vae.decode(latents.cpu()).sample
    return (images.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """[n, h, w, 3] uint8 -> one picture, as square as it gets, two white pixels apart."""
    n, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + 2), i % columns * (width + 2)
        sheet[y : y + height, x : x + width] = image
    return Image.fromarray(sheet)


def save_grid(images: np.ndarray, path: Path, columns: int | None = None) -> None:
    with replacing(path) as temporary:
        grid(images, columns).save(temporary)


def save_images(images: np.ndarray, folder: Path, seeds: Sequence[int]) -> list[Path]:
    """One PNG for each seed. Returns: their paths."""
    paths = [folder / f"{seed:06d}.png" for seed in seeds]
    for path, image in zip(paths, images, strict=True):
        with replacing(path, durable=False) as temporary:
            Image.fromarray(image).save(temporary)
    return paths


def add_lora(pipe: Any, path: Path, strength: float) -> None:
    """Load a LoRA file as any user of diffusers does. Raises: UserError if it does not fit the model."""
    from .libraries import quiet

    try:
        with quiet():
            pipe.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    except Exception as error:  # diffusers, peft and safetensors each raise their own
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"--lora: {path} does not fit this model ({reason})") from None
    pipe.set_adapters(pipe.get_list_adapters()["unet"], strength)


def _check_place(path: Path) -> None:
    """Raises: UserError where no file can be written, before the pictures are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written ({error.strerror})") from None


def main(argv: Sequence[str]) -> int:
    """The `sample` command. Raises: UserError. Returns: exit code."""
    options = sample_options.make_parser().parse_args(argv)
    is_builtin = options.base == "builtin"
    if options.lora and not options.lora.is_file():
        raise UserError(f"--lora: no file {options.lora}")
    if options.out.suffix.lower() != ".png" or options.out.is_dir():
        raise UserError(f"--out: {options.out} must end in .png and be no folder")
    _check_place(options.out)
    from . import hub, memory, model
    from .switches import DTYPES

    base = model.Base(hub.find(options.base), options.vae, options.prediction_type)
    model.check(base, clip_skip=options.clip_skip)
    device = memory.choose_device(options.device)
    dtype = DTYPES[memory.choose_precision("auto", device)]
    pipe = model.load_pipeline(base, model.load_unet(base, dtype))
    if options.lora:
        add_lora(pipe, options.lora, options.strength)
    pipe.unet.to(device)
    images = pictures(
        pipe,
        options.prompt,
        seeds=options.seeds,
        resolution=options.resolution or (64 if is_builtin else 512),
        steps=options.steps,
        guidance=(1.0 if is_builtin else 7.5) if options.guidance is None else options.guidance,
        clip_skip=options.clip_skip,
    )
    save_grid(images, options.out)
    print(options.out)
    return 0
