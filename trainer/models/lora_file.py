"""The LoRA file that every Stable Diffusion UI reads: kohya's key names, metadata and hashes."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ..common.errors import UserError
from ..common.files import replacing

UNET_PREFIX, TEXT_PREFIX = "lora_unet_", "lora_te_"
Pairs = Mapping[str, tuple[Any, Any]]  # module path -> (down layer, up layer)
TAGS = 1000  # the most frequent ones: UIs show a few dozen


def kohya_name(path: str) -> str:
    """`down_blocks.0.attentions.0.proj_in` -> `lora_unet_down_blocks_0_attentions_0_proj_in`."""
    return UNET_PREFIX + path.replace(".", "_")


def to_kohya(weights: Mapping[str, Tensor], *, alpha: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rename LoRA weights by module path (`….down`, `….up`) -> kohya's keys.

    Args: alpha: written as it is; readers scale by alpha / rank.
    Returns: three tensors for each module: lora_down.weight, lora_up.weight and a 0-d alpha. Nothing else belongs
        into the file: Forge drops a LoRA with 13 unknown keys.
    """
    tensors = {}
    for key, value in weights.items():
        path, _, side = key.rpartition(".")
        tensors[f"{kohya_name(path)}.lora_{side}.weight"] = value.to(dtype).contiguous()
        tensors[f"{kohya_name(path)}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


def read(path: Path, *, option: str = "--lora") -> dict[str, Tensor]:
    """Read a LoRA's tensors under kohya's names, whichever way it was written.

    Taken as well: diffusers' names (`unet.….lora_A.weight`, `….lora.down.weight`), peft's own prefix, and OneTrainer's
    (kohya's with dots). What has no counterpart keeps its name.
    Raises: UserError if the file cannot be read, is no LoRA, or holds nan.
    """
    try:
        found = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors has its own
        raise UserError(f"{option}: {path} cannot be read ({error})") from None
    broken = [name for name, value in found.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if broken:
        raise UserError(f"{option}: {path} is damaged: {broken[0]} holds values that are not finite (nan or infinity)")
    named = {_kohya_key(name): value for name, value in found.items()}
    if not any(name.endswith((".lora_down.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a")) for name in named):
        raise UserError(f"{option}: {path} is no LoRA: it holds none of its pairs of layers")
    return named


def _kohya_key(name: str) -> str:
    plain = name.removeprefix("base_model.model.")
    match = re.fullmatch(
        r"(.+)\.(?:lora_([AB])(?:\.default)?|lora\.(down|up)|lora_(down|up))\.weight|(.+)\.alpha", plain
    )
    if not match:
        return name
    module = match[1] or match[5]
    if not module.startswith(("lora_", "unet.", "text_encoder.")):
        module = f"unet.{module}" if name != plain else module
    for kohya, theirs in ((UNET_PREFIX, "unet."), (TEXT_PREFIX, "text_encoder.")):
        for start in (theirs, kohya.removesuffix("_") + "."):
            if module.startswith(start):
                module = kohya + module.removeprefix(start).replace(".", "_")
    side = {"A": "down", "B": "up"}.get(match[2]) or match[3] or match[4]
    return f"{module}.lora_{side}.weight" if side else f"{module}.alpha"


def from_kohya(path: Path, modules: Pairs, *, rank: int, scale: float) -> dict[str, Tensor]:
    """Read a LoRA file's weights by module path (`….down`, `….up`), rescaled to our alpha / rank.

    Args:
        modules: the U-Net's modules that have a LoRA: path -> (down layer, up layer). Those that the file lacks keep
            their values, which change nothing.
        scale: our alpha / rank; the file's own alpha goes into its up weights.
    Raises: UserError if the file is no LoRA for these modules, of another rank or width, or has more than they take:
        without the rest it would be another LoRA. Only what it has for the text encoder is left out.
    """
    found = read(path, option="--init-lora")
    _refuse_foreign(path, found, {kohya_name(module) for module in modules})
    weights = {}
    for module, layers in modules.items():
        name = kohya_name(module)
        pair = [found.get(f"{name}.lora_{side}.weight") for side in ("down", "up")]
        down, up = (
            layer.weight.detach() if value is None else value.float() for value, layer in zip(pair, layers, strict=True)
        )
        if len(down) != rank:
            raise UserError(f"--init-lora: {path} has rank {len(down)}; give --rank {len(down)}")
        _compare_shapes(path, name, (down, up), layers)
        alpha = found.get(f"{name}.alpha", torch.tensor(float(rank))).item()
        weights[f"{module}.down"], weights[f"{module}.up"] = down, up * (alpha / rank / scale)
    return weights


def text_encoder_modules(path: Path) -> int:
    """Count the modules of the text encoder that a LoRA file changes."""
    return len({key.partition(".")[0] for key in read(path) if key.startswith(TEXT_PREFIX)})


def _refuse_foreign(path: Path, found: Mapping[str, Tensor], names: set[str]) -> None:
    """Raise UserError for what a LoRA has beyond these modules of the U-Net, or if it has none of them."""
    places = {key.partition(".")[0]: key for key in found if not key.startswith(TEXT_PREFIX)}
    foreign = sorted(key for name, key in places.items() if name not in names)
    if not names & places.keys():
        raise UserError(f"--init-lora: {path} has nothing for this model's modules: a LoRA for another model or target")
    parts = ("alpha", "lora_down.weight", "lora_up.weight")
    foreign += sorted(key for key in found if key.partition(".")[0] in names and key.partition(".")[2] not in parts)
    if foreign:
        raise UserError(
            f"--init-lora: {path} has more than is trained here, such as {foreign[0]} ({len(foreign)} modules in all; "
            "a LoCon's 3x3 layers, DoRA and the like): without them it would be another LoRA"
        )
    lone = [
        f"{name}.lora_{side}.weight"
        for name in sorted(names & places.keys())
        for side in ("down", "up")
        if f"{name}.lora_{side}.weight" not in found
    ]
    if lone:
        raise UserError(f"--init-lora: {path} is damaged: it has no {lone[0]}")


def _compare_shapes(path: Path, name: str, found: tuple[Tensor, Tensor], layers: tuple[Any, Any]) -> None:
    for side, value, layer in zip(("down", "up"), found, layers, strict=True):
        if value.shape != layer.weight.shape:
            shapes = f"is {tuple(value.shape)} there, {tuple(layer.weight.shape)} in this model"
            raise UserError(f"--init-lora: {path} is a LoRA for another model: {name}.lora_{side}.weight {shapes}")


def standard_metadata(
    *,
    name: str,
    rank: int,
    alpha: float,
    resolution: int,
    base_name: str,
    base_hash: str,
    finished: str,
    prediction_type: str,
    clip_skip: int,
) -> dict[str, str]:
    """Return the metadata that UIs and LoRA managers read. All values are text, as the format demands.

    Args:
        base_name: without folders. base_hash: sha256 of the base U-Net's weights file.
        finished: ISO 8601, UTC.
    """
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.date": finished,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(prediction_type, prediction_type),
        "ss_base_model_version": "sd_1.5",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": "{}",
        "ss_output_name": name,
        "ss_sd_model_name": base_name,
        "ss_new_sd_model_hash": base_hash,
        "ss_clip_skip": str(clip_skip),
        "ss_resolution": f"({resolution}, {resolution})",
    }


def dataset_metadata(
    unlabeled: Sequence[str | None], sensitive: Sequence[str | None], *, started: float, shows_tags: bool
) -> dict[str, str]:
    """Return the metadata about a LoRA's images and date. Folders are named by their role only.

    Args:
        unlabeled, sensitive: the captions, one for each image; None where it has none of its own.
        started: seconds since 1970.
        shows_tags: whether captions may be read, as tags. Those of unlabeled images tell as much as those of
            sensitive ones, which are hidden among them.
    """
    images = {"unlabeled": unlabeled, "sensitive": sensitive}
    folders = {role: {"n_repeats": 1, "img_count": len(captions)} for role, captions in images.items()}
    tags = {role: _tags(captions) for role, captions in images.items()} if shows_tags else {}
    return {
        "ss_training_started_at": str(started),
        "ss_num_train_images": str(len(unlabeled) + len(sensitive)),
        "ss_dataset_dirs": json.dumps(folders),
        "ss_tag_frequency": json.dumps(
            {r: dict(list(t.items())[:TAGS]) for r, t in tags.items() if t}, ensure_ascii=False
        ),
    }


def _tags(captions: Iterable[str | None]) -> dict[str, int]:
    """Count kohya's tags: the parts of captions between commas, in lower case, by number of images."""
    parts = (part.strip().lower() for caption in captions for part in (caption or "").split(","))
    return dict(Counter(part for part in parts if part).most_common())


def save(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file atomically, with kohya's two hashes of its content."""
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={**metadata, **_hashes(tensors, metadata)})


def _hashes(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """sshs_model_hash: sha256 of the tensor bytes, whatever the metadata. sshs_legacy_hash: A1111's older short one."""
    ss = {k: v for k, v in metadata.items() if k.startswith("ss_")}
    data = safetensors.torch.save(tensors, metadata=ss)
    header = int.from_bytes(data[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(data[8 + header :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
    }


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
