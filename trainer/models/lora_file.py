"""The LoRA file that every Stable Diffusion UI reads: kohya's key names, metadata and hashes."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..common.errors import UserError
from ..common.files import replacing

UNET_PREFIX = "lora_unet_"
Pairs = Mapping[str, tuple[nn.Module, nn.Module]]
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


def from_kohya(path: Path, modules: Pairs, *, rank: int, scale: float) -> dict[str, Tensor]:
    """Read a LoRA file's weights by module path (`….down`, `….up`), rescaled to our alpha / rank.

    Args:
        modules: the U-Net's modules that have a LoRA: path -> (down layer, up layer).
        scale: our alpha / rank; the file's own alpha goes into its up weights.
    Raises: UserError if the file is no LoRA for these modules, or of another rank or width. What it has for the text
        encoder is left out.
    """
    try:
        found = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors has its own
        raise UserError(f"--init-lora: {path} cannot be read ({error})") from None
    weights = {}
    for module in modules:
        name = kohya_name(module)
        try:
            down, up = (found[f"{name}.lora_{side}.weight"].float() for side in ("down", "up"))
        except KeyError as error:
            raise UserError(f"--init-lora: {path} has no {error.args[0]}: a LoRA for another model or target") from None
        if len(down) != rank:
            raise UserError(f"--init-lora: {path} has rank {len(down)}; give --rank {len(down)}")
        _compare_shapes(path, name, (down, up), modules[module])
        alpha = found.get(f"{name}.alpha", torch.tensor(float(rank))).item()
        weights[f"{module}.down"], weights[f"{module}.up"] = down, up * (alpha / rank / scale)
    return weights


def _compare_shapes(path: Path, name: str, found: tuple[Tensor, Tensor], layers: tuple[nn.Module, nn.Module]) -> None:
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
    unlabeled: Sequence[str | None], sensitive: Sequence[str | None], *, started: float, show_sensitive: bool
) -> dict[str, str]:
    """Return the metadata about a LoRA's images and date. Folders are named by their role only.

    Args:
        unlabeled, sensitive: the captions, one for each image; None where it has none of its own.
        started: seconds since 1970.
        show_sensitive: whether captions of sensitive images may be read; if not, tags that hold one of theirs are left
            out of the unlabeled images' tags, too.
    """
    hidden = () if show_sensitive else tuple(_tags(sensitive))
    tags = {"unlabeled": {t: n for t, n in _tags(unlabeled).items() if not any(h in t for h in hidden)}}
    if show_sensitive:
        tags["sensitive"] = _tags(sensitive)
    images = {"unlabeled": len(unlabeled), "sensitive": len(sensitive)}
    folders = {role: {"n_repeats": 1, "img_count": count} for role, count in images.items()}
    return {
        "ss_training_started_at": str(started),
        "ss_num_train_images": str(sum(images.values())),
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


def hashed(caption: str) -> str:
    """Hash a sensitive caption (sha256): a shared file does not show it, while its author can prove it."""
    return hashlib.sha256(caption.encode()).hexdigest()
