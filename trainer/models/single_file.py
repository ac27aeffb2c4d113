"""Single-file Stable Diffusion 1.x checkpoints (LDM keys): what a file is, the shape of its parts, their tensors.

The header of a .safetensors is read without torch, so that a wrong file is answered at once. Sizes come from the
tensors' shapes: a smaller variant of the architecture loads too.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import UserError
from . import pickle_checkpoint, vae_names

if TYPE_CHECKING:
    from torch import Tensor


PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
WANTED = "PU Unlearn trains on Stable Diffusion 1.x checkpoints"
SUFFIXES = (".safetensors", ".ckpt")
PICKLES = (".ckpt", ".pt")
SCALE = ".scale_weight"  # of fp8 checkpoints: what a weight of this name is to be multiplied by
LORA = re.compile(r"\.(lora_(down|up|A|B)(\.\w+)?\.weight|lora\.(down|up)\.weight|hada_w[12]_[ab]|lokr_w[12](_[ab])?)$")
MAX_HEADER = 100_000_000  # bytes, the format's own limit
Shapes = Mapping[str, tuple[int, ...]]
# The first rule whose text is in a key names what the file is. Order matters: SDXL has Stable Diffusion 1's keys too.
OTHER_KINDS = (
    ("conditioner.embedders.", "SDXL"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("double_blocks.", "FLUX"),
    ("cond_stage_model.model.", "Stable Diffusion 2.x"),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding", "a ControlNet"),
    ("emb_params", "a textual inversion"),
)


def header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Read names and shapes of a .safetensors file's tensors, and its metadata, without torch.

    Raises: UserError for a file that is none, or not all there.
    Source: the safetensors format (8 bytes little-endian header length, JSON header, data).
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER:
                raise ValueError
            entries = json.loads(file.read(length).decode())
        metadata = entries.pop("__metadata__", None) or {}
        _check_metadata(path, metadata)
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        if not all(isinstance(n, int) and n >= 0 for shape in shapes.values() for n in shape):
            raise ValueError
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: {_what_instead(path)}") from None
    if size != end:
        what = f"cut off after {size}" if size < end else f"damaged: {size} instead"
        raise UserError(f"{path}: {what} of {end} bytes. Download it again.")
    return shapes, metadata


def _check_metadata(path: Path, metadata: Any) -> None:
    """Raise UserError if no library reads a file for its metadata: the format allows text only."""
    wrong = (
        "itself"
        if not isinstance(metadata, dict)
        else next((repr(name) for name, value in metadata.items() if not isinstance(value, str)), None)
    )
    if wrong:
        raise UserError(
            f"{path}: its metadata ({wrong}) hold something other than text, which the .safetensors format does not "
            "allow. Save the file again, with its metadata as text or without."
        )


def shapes(path: Path, part: str) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of a checkpoint's tensors. Args: part: named in the error message."""
    return shapes_of(_load_ckpt(path, part)) if path.suffix.lower() in PICKLES else header(path)[0]


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _load_ckpt(path: Path, part: str) -> dict[str, Tensor]:
    """Read all tensors of a .ckpt and check their shapes. Args: part: named in the error. Raises: UserError."""
    state = pickle_checkpoint.load(path, option="--vae" if part == "vae" else "--base")
    if part == "vae" and not any(name.startswith(PREFIXES["unet"]) for name in state):
        if not is_vae(shapes_of(state)):
            raise UserError(
                f"--vae: {path} holds no VAE, neither with Stable Diffusion's own (LDM) key names nor diffusers'"
            )
        return state
    check_shapes(path, shapes_of(state), has_vae=part != "vae")
    return state


def _what_instead(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "empty file (0 bytes)"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the model. Fetch the file itself: git lfs pull"
    if start.lstrip()[:1] == b"<":
        return "a web page, not a model. Download the file itself."
    if start.startswith((b"PK", b"\x80")):
        return "a pickle under another name. Give it its own suffix: .ckpt"
    return "not a .safetensors file, or a damaged one"


def check(path: Path, *, has_vae: bool) -> None:
    """Check that this is a complete Stable Diffusion 1.x checkpoint.

    Args: has_vae: another VAE is given, so the file may lack its own.
    Raises: UserError saying what it is instead or what is missing. A .ckpt is only looked at when it is loaded.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--base: {path} is neither a folder nor a {' or '.join(SUFFIXES)} file")
    if path.suffix.lower() == ".ckpt":
        if not zipfile.is_zipfile(path):
            raise UserError(
                f"--base: {path} is no .ckpt that torch 1.6 or newer wrote, or it is cut off. "
                f"{pickle_checkpoint.CONVERT}"
            )
        return
    try:
        shapes, _ = header(path)
    except UserError as error:
        raise UserError(f"--base: {error}") from None
    check_shapes(path, shapes, has_vae=has_vae)


def check_shapes(path: Path, shapes: Shapes, *, has_vae: bool) -> None:
    """Check shapes that were already read. Raises: UserError."""
    if _is_lora(shapes):
        raise UserError(f"--base: {path} is a LoRA, not a base model; {WANTED}")
    for text, kind in OTHER_KINDS:
        if any(text in name for name in shapes):
            raise UserError(f"--base: {path} is {kind}; {WANTED}")
    if any(name.startswith("model_ema.") for name in shapes) and not _part(shapes, "unet"):
        raise UserError(
            f"--base: {path} holds its U-Net only as an average (EMA) in the training code's names, which is not read. "
            "Convert it with that code's own script, or take the pruned file."
        )
    has = {part: any(name.startswith(prefix) for name in shapes) for part, prefix in PREFIXES.items()}
    if not any(has.values()):
        kind = "a VAE" if "decoder.conv_in.weight" in shapes else "one part of a diffusers folder: give the folder"
        known = {"decoder.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"} & shapes.keys()
        raise UserError(f"--base: {path} is {kind if known else 'no Stable Diffusion checkpoint'}")
    missing = [part for part in PREFIXES if not has[part] and not (part == "vae" and has_vae)]
    if missing:
        hint = " (another VAE: --vae)" if missing == ["vae"] else ""
        raise UserError(f"--base: {path} lacks the {' and the '.join(missing).replace('_', ' ')}{hint}")
    try:
        unet = unet_config(_part(shapes, "unet"))
        text_encoder = text_config(_part(shapes, "text_encoder"))
        if not has_vae:
            vae_config(vae_names.to_ldm(shapes))
    except (LookupError, TypeError, ValueError):  # each lacks something else
        raise UserError(f"--base: {path} has the keys of Stable Diffusion 1.x but lacks weights of it") from None
    check_configs(path, unet, text_encoder)


def _is_lora(shapes: Shapes) -> bool:
    """Whether this is a LoRA (LoHa, LoKr): it has their pairs and no U-Net of its own."""
    return any(LORA.search(name) for name in shapes) and not _part(shapes, "unet")


def is_vae(shapes: Shapes) -> bool:
    """Whether a VAE is in it, under LDM's names or diffusers'."""
    try:
        return bool(vae_config(vae_names.to_ldm(shapes)))
    except (LookupError, TypeError, ValueError):
        return False


def check_configs(path: Path, unet: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Check that these configs are Stable Diffusion 1.x's U-Net and text encoder. Raises: UserError."""
    width, channels, kind = unet.get("cross_attention_dim"), unet.get("in_channels", 4), None
    if unet.get("addition_embed_type"):
        kind = "SDXL"
    elif unet.get("use_linear_projection") or width == 1024:
        kind = "Stable Diffusion 2.x"
    elif channels != 4:
        kind = {9: "an inpainting model", 8: "instruct-pix2pix"}.get(channels, f"a model of {channels} input channels")
    if kind:
        raise UserError(f"--base: {path} is {kind}; {WANTED}")
    if width != text.get("hidden_size"):
        raise UserError(f"--base: {path} is no Stable Diffusion 1.x: its U-Net expects text states of width {width}")


def _part(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    prefix = PREFIXES[part]
    return {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}


def part_config(shapes: Shapes, part: str) -> dict[str, Any]:
    """Derive diffusers' or transformers' config of one part. Args: shapes: of the whole file, or of a VAE alone."""
    if part == "vae":
        return vae_config(vae_names.to_ldm(shapes))
    make = {"unet": unet_config, "text_encoder": text_config}[part]
    return make(_part(shapes, part) or dict(shapes))


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Derive UNet2DConditionModel's arguments.

    Args: shapes: of the U-Net, prefix removed. Raises: KeyError if incomplete.
    """
    n = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
    down = [i for i in range(n) if f"input_blocks.{i}.0.op.weight" in shapes]
    stride = down[0] if down else n  # blocks from one downsampling to the next
    first = range(1, n, stride)
    projections = [shapes.get(f"input_blocks.{i}.1.proj_in.weight") for i in first]
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": [shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0] for i in first],
        "layers_per_block": stride - 1,
        "down_block_types": ["CrossAttnDownBlock2D" if p else "DownBlock2D" for p in projections],
        "up_block_types": ["CrossAttnUpBlock2D" if p else "UpBlock2D" for p in reversed(projections)],
        "cross_attention_dim": max(s[1] for name, s in shapes.items() if name.endswith("attn2.to_k.weight")),
        "use_linear_projection": any(p and len(p) == 2 for p in projections),
        "attention_head_dim": 8,  # diffusers' name for the number of heads, which no shape shows: 8 in all of SD 1.x
        "sample_size": 64,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Derive AutoencoderKL's arguments. Args: shapes: of the VAE, prefix removed. Raises: KeyError if incomplete."""
    n = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.down."))
    channels = [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(n)]
    return {
        "block_out_channels": channels,
        "layers_per_block": sum(f"encoder.down.0.block.{i}.conv1.weight" in shapes for i in range(9)),
        "down_block_types": ["DownEncoderBlock2D"] * n,
        "up_block_types": ["UpDecoderBlock2D"] * n,
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "scaling_factor": 0.18215,
        "sample_size": 512,
    }


def text_config(shapes: Shapes) -> dict[str, Any]:
    """Derive CLIPTextConfig's arguments. Args: shapes: of the text encoder, prefix removed. Raises: KeyError."""
    shapes = {_clip_name(name): shape for name, shape in shapes.items()}
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": sum(n.startswith("encoder.layers.") and n.endswith(".mlp.fc1.weight") for n in shapes),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "vocab_size": vocabulary,
        "hidden_act": "quick_gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }


def _clip_name(name: str) -> str:
    """Strip the wrapper prefixes that differ between files and library versions."""
    return name.removeprefix("transformer.").removeprefix("text_model.")


def tensors(path: Path, part: str) -> dict[str, Tensor]:
    """Read one part's tensors under its LDM keys, prefix kept, in the file's own number format, mapped from disk.

    Args: path: a checkpoint, or for the VAE a file of its own.
    """
    prefix = PREFIXES[part]
    if path.suffix.lower() in PICKLES:
        state = _load_ckpt(path, part)
    else:
        from safetensors import safe_open

        header(path)  # damaged: told in a sentence
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            wanted = [name for name in names if name.startswith(prefix)] or names
            state = {name: file.get_tensor(name) for name in wanted}
    if part == "vae":
        return {vae_names.PREFIX + name: value for name, value in vae_names.to_ldm(state).items()}
    return unscaled({name: value for name, value in state.items() if name.startswith(prefix)} or state)


def unscaled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply fp8 weights by their scales (fp32 then), which are left out, as is what says that there are some."""
    found = {}
    for name, value in state.items():
        scale = state.get(name.removesuffix(".weight") + SCALE) if name.endswith(".weight") else None
        if not name.endswith((SCALE, ".scale_input", "scaled_fp8")):
            found[name] = value if scale is None else value.float() * scale.float()
    return found


def clip_state(state: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """Rename LDM text encoder tensors to the names that CLIPTextModel has here (transformers 5.6 dropped a level)."""
    level = "text_model." if any(name.startswith("text_model.") for name in names) else ""
    prefix = PREFIXES["text_encoder"]
    renamed = {level + _clip_name(name.removeprefix(prefix)): value for name, value in state.items()}
    return {name: value for name, value in renamed.items() if not name.endswith("position_ids")}
