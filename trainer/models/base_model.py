"""The frozen parts of a Stable Diffusion 1.x model, loaded one at a time, offline, from a folder or a single file.

Only functions that load import torch, so that a wrong --base is reported within a second.
"""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..builtin import MODEL
from ..common.errors import UserError
from ..common.files import sha256
from ..common.model_files import WEIGHTS
from ..common.third_party import quiet
from . import single_file
from .noise_schedule import PREDICTIONS, SCHEDULE, NoiseSchedule, declared_by, schedule_problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
TOKENIZER = MODEL / "tokenizer"  # CLIP's, the same for all of SD 1.x


@dataclass(frozen=True)
class Base:
    """A model on disk: a diffusers folder, or a single file with LDM keys. `check` it before loading."""

    path: Path
    vae: Path | None = None  # instead of the model's own: a folder or a file
    prediction: str = "auto"  # epsilon, v, or what the model itself says

    @property
    def is_file(self) -> bool:
        return self.path.is_file()


def check(base: Base, *, clip_skip: int = 1) -> None:
    """Check without loading that this is a complete Stable Diffusion 1.x model.

    Args: clip_skip: which layer of the text encoder is wanted, from the last.
    Raises: UserError saying what is missing or what it is instead.
    """
    if base.vae:
        _check_vae(base.vae)
    if base.is_file:
        single_file.check(base.path, has_vae=base.vae is not None)
    else:
        _check_folder(base)
    if clip_skip > 1:  # only then: a .ckpt is opened for it
        layers = part_config(base, "text_encoder").get("num_hidden_layers", 12)
        if clip_skip > layers:
            raise UserError(f"--clip-skip {clip_skip}: the text encoder of {base.path} has {layers} layers")


def _check_folder(base: Base) -> None:
    path = base.path
    missing = [part for part in PARTS if not (path / part).is_dir() and not (part == "vae" and base.vae)]
    if missing:
        raise UserError(f"--base: {path} is no diffusers folder of Stable Diffusion 1.x: it lacks {', '.join(missing)}")
    single_file.check_configs(path, read_config(path / "unet"), read_config(path / "text_encoder"))
    for part in WEIGHTS:
        if not (part == "vae" and base.vae):
            weights_file(path / part, WEIGHTS[part])
    noise = read_config(path / "scheduler", "scheduler_config.json")
    if problem := schedule_problem(noise):
        raise UserError(f"--base: {path}/scheduler: {problem}; not a noise schedule that is known here")


def _check_vae(path: Path) -> None:
    if path.is_dir():
        read_config(path, option="--vae")
        weights_file(path, WEIGHTS["vae"], option="--vae")
        return
    if path.suffix.lower() in single_file.PICKLES:
        return  # looked at when it is loaded, which needs torch
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"--vae: {path} is neither a diffusers VAE folder nor a .safetensors, .ckpt or .pt file")
    try:
        shapes, _ = single_file.header(path)
    except UserError as error:
        raise UserError(f"--vae: {error}") from None
    if not single_file.is_vae(shapes):
        raise UserError(
            f"--vae: {path} holds no VAE, neither with Stable Diffusion's own (LDM) key names nor diffusers'"
        )


def read_config(folder: Path, name: str = "config.json", *, option: str = "--base") -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: cannot read {folder / name}: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{option}: {folder / name} holds no settings")
    return found


def weights_file(folder: Path, stem: str, *, option: str = "--base") -> Path:
    """Find the .safetensors of one part, fp16 variant or not.

    Raises: UserError if there is none; .bin is never opened.
    """
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{option}: {folder} holds no {stem}.safetensors (pickled .bin weights are not opened)")


def part_hash(base: Base, part: str) -> str:
    """Return the sha256 of one part's weights file, or of the whole single file (the hash that UIs show)."""
    path = _place(base, part)
    file = weights_file(path, WEIGHTS[part]) if path.is_dir() else path
    status = file.stat()
    return _file_hash(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _file_hash(file: Path, size: int, mtime_ns: int) -> str:
    """Hash each file once: 4 GB take ten seconds. The cache is keyed by size and modification time."""
    return sha256(file)


def part_config(base: Base, part: str) -> dict[str, Any]:
    """Return the arguments of the part's class, without loading weights."""
    place = _place(base, part)
    if place.is_dir():
        return read_config(place)
    return single_file.part_config(single_file.shapes(place, part), part)


def _place(base: Base, part: str) -> Path:
    """Return the folder of a part, or the single file that holds it."""
    if part == "vae" and base.vae:
        return base.vae
    return base.path if base.is_file else base.path / part


def load_vae(base: Base, dtype: torch.dtype) -> torch.nn.Module:
    """Load the AutoencoderKL, frozen. dtype: fp32 or bf16; fp16 makes nan of some images."""
    from diffusers import AutoencoderKL

    return _load(AutoencoderKL, _place(base, "vae"), "vae", dtype)


def empty_unet(base: Base) -> torch.nn.Module:
    """Return the U-Net without its weights, on the meta device: only names and shapes."""
    import torch
    from diffusers import UNet2DConditionModel

    with quiet(), torch.device("meta"):
        found: torch.nn.Module = UNet2DConditionModel.from_config(part_config(base, "unet"))
    return found.requires_grad_(False)


def load_unet(base: Base, dtype: torch.dtype) -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return _load(UNet2DConditionModel, _place(base, "unet"), "unet", dtype)


def _load(kind: Any, place: Path, part: str, dtype: torch.dtype) -> torch.nn.Module:
    """Load a diffusers model from its folder or from a single file, frozen."""
    with quiet():
        try:
            found, missing = (_from_folder if place.is_dir() else _from_file)(kind, place, part, dtype)
        except (NotImplementedError, KeyError, ValueError) as error:  # of diffusers: left without a value, misshapen
            missing = _misfits(kind, place, part) if place.is_file() else []
            missing = missing or [(str(error).strip() or repr(error)).splitlines()[0].split(". If you want")[0]]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{place}: the {part} has weights missing or misshapen ({', '.join(missing[:3])}{more})")
    check_finite(place, part, found)
    return found.requires_grad_(False).eval()


def check_finite(place: Path, part: str, model: torch.nn.Module) -> None:
    """Raise UserError naming the first weight that is nan or infinite: training could only fail, at its first step."""
    for name, value in model.state_dict().items():
        # a sum reads each value once and makes no mask; fp16 and fp8 are summed in fp32
        if value.is_floating_point() and not _sum(value).isfinite():
            broken = value.numel() - int(value.float().isfinite().sum())
            if broken:
                raise UserError(
                    f"{place}: {part}: {broken} of {value.numel()} values of {name} are not finite (nan or infinity). "
                    "The file is damaged, or was merged or saved wrongly: take another copy of the model."
                )


def _sum(value: Tensor) -> Tensor:
    """Sum in fp32: fp16 would overflow."""
    import torch

    return (value.float() if value.dtype.itemsize == 1 else value).sum(dtype=torch.float32)


def _misfits(kind: Any, place: Path, part: str) -> list[str]:
    """List the weights that a file lacks or has in another shape, by diffusers' names. Empty: it cannot be said."""
    import torch
    from diffusers.loaders import single_file_utils

    convert = getattr(single_file_utils, f"convert_ldm_{part}_checkpoint")
    state = single_file.tensors(place, part)
    with torch.device("meta"):
        model = kind.from_config(single_file.part_config(single_file.shapes_of(state), part))
    try:
        found = convert(dict(state), dict(model.config))
    except KeyError as error:
        return [str(error.args[0])]
    wanted = model.state_dict().items()
    return [name for name, value in wanted if name not in found or found[name].shape != value.shape]


def _from_folder(kind: Any, place: Path, part: str, dtype: torch.dtype) -> tuple[torch.nn.Module, list[str]]:
    """Load from a folder. Returns: (model, names of missing weights, which diffusers leaves random)."""
    variant = "fp16" if weights_file(place, WEIGHTS[part]).name.endswith(".fp16.safetensors") else None
    how = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True, "variant": variant}
    model, info = kind.from_pretrained(place, output_loading_info=True, **how)
    return model, sorted(info["missing_keys"])


def _from_file(kind: Any, place: Path, part: str, dtype: torch.dtype) -> tuple[torch.nn.Module, list[str]]:
    state = single_file.tensors(place, part)
    config = single_file.part_config(single_file.shapes_of(state), part)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        return kind.from_single_file(state, config=folder, torch_dtype=dtype, local_files_only=True), []


def load_text_encoder(base: Base, dtype: torch.dtype) -> tuple[Any, torch.nn.Module]:
    """Load (CLIPTokenizer, CLIPTextModel). Other text-encoder keys of a file are ignored."""
    from transformers import CLIPTextConfig, CLIPTextModel

    place = _place(base, "text_encoder")
    file = weights_file(place, WEIGHTS["text_encoder"]) if place.is_dir() else place
    with quiet():
        tokenizer = load_tokenizer(base)
        encoder: Any = CLIPTextModel(CLIPTextConfig.from_dict(part_config(base, "text_encoder")))
    wanted = {name: value.shape for name, value in encoder.state_dict().items() if not name.endswith("position_ids")}
    state = single_file.clip_state(single_file.tensors(file, "text_encoder"), set(wanted))
    if misfits := [name for name, shape in wanted.items() if name not in state or state[name].shape != shape]:
        raise UserError(f"{place}: the text encoder lacks weights, or has them misshapen, such as {misfits[0]}")
    encoder.load_state_dict(state, strict=False)
    check_finite(place, "text_encoder", encoder)
    return tokenizer, encoder.to(dtype).requires_grad_(False).eval()


def load_tokenizer(base: Base) -> Any:
    """Load the CLIPTokenizer: the folder's, or Stable Diffusion 1.x's for a single file."""
    from transformers import CLIPTokenizer

    with quiet():
        return CLIPTokenizer.from_pretrained(
            TOKENIZER if base.is_file else base.path / "tokenizer", local_files_only=True
        )


def scheduler_config(base: Base) -> dict[str, Any]:
    """Return diffusers' scheduler settings: the folder's, or SD 1.x's for a single file; --prediction-type applied."""
    if base.is_file:
        found = {**SCHEDULE, **declared_by(base.path)}
    else:
        found = read_config(base.path / "scheduler", "scheduler_config.json")
    if base.prediction != "auto":
        found["prediction_type"] = PREDICTIONS[base.prediction]
    return {**found, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def load_noise_schedule(base: Base) -> NoiseSchedule:
    """Read the noise schedule and what the model predicts from its configuration."""
    with quiet():
        from diffusers import DDIMScheduler

        config = scheduler_config(base)
        made: Any = DDIMScheduler.from_config(config)  # the pictures' own
    return NoiseSchedule(made.alphas_cumprod, config.get("prediction_type", "epsilon"))
