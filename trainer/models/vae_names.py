"""Names of a VAE's tensors in the files that people download: LDM's own, diffusers', and mixtures of both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")
PREFIX = "first_stage_model."
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_RENAMED = (  # diffusers' names -> LDM's; those of decoder.up are counted from the other end, see `_level`
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.mid\.attn_1\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid\.attn_1\.(to_q|query)\.", ".mid.attn_1.q."),
    (r"\.mid\.attn_1\.(to_k|key)\.", ".mid.attn_1.k."),
    (r"\.mid\.attn_1\.(to_v|value)\.", ".mid.attn_1.v."),
    (r"\.mid\.attn_1\.(to_out\.0|proj_attn)\.", ".mid.attn_1.proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def to_ldm(values: Mapping[str, V]) -> dict[str, V]:
    """Return a VAE's tensors, or their shapes, under LDM's names without prefix; a discriminator and the like left out.

    Args: values: of a VAE alone or of a whole checkpoint, under LDM's names or diffusers'.
    """
    own = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    found = {name: value for name, value in (own or values).items() if name.startswith(PARTS)}
    up = [int(name.split(".")[2]) for name in found if re.match(r"decoder\.up_blocks\.\d+\.", name)]
    return {_level(name, max(up, default=0)): value for name, value in found.items()}


def _level(name: str, last: int) -> str:
    """Return LDM's name of one tensor. Args: last: number of the decoder's last level."""
    is_reversed = name.startswith("decoder.up_blocks.")
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    if not is_reversed:
        return name
    return re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{last - int(m[1])}.", name)
