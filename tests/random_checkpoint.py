"""Write a random Stable Diffusion 1.x checkpoint with LDM keys: the exact shape of SD 1.5, or a small variant.

    python tests/random_checkpoint.py FILE.safetensors [--small]

For tests and measurements only. Names and shapes are written down from the architecture (Rombach et al. 2022, the
public v1-inference settings); tests hold them against diffusers' own converter.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shape:
    """What differs between the full model and a small one."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attends: tuple[bool, ...] = (True, True, True, False)
    layers: int = 2
    context: int = 768
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    text_layers: int = 12
    in_channels: int = 4


FULL = Shape()
SMALL = Shape((32, 64), (True, False), 1, 64, (32, 32, 64, 64), 1, 2)

Sizes = Iterator[tuple[str, tuple[int, ...]]]


def _layer(name: str, *shape: int) -> Sizes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _resnet(name: str, inside: int, outside: int, time: int) -> Sizes:
    yield from _layer(f"{name}.in_layers.0", inside)
    yield from _layer(f"{name}.in_layers.2", outside, inside, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", outside, time)
    yield from _layer(f"{name}.out_layers.0", outside)
    yield from _layer(f"{name}.out_layers.3", outside, outside, 3, 3)
    if inside != outside:
        yield from _layer(f"{name}.skip_connection", outside, inside, 1, 1)


def _transformer(name: str, width: int, context: int) -> Sizes:
    yield from _layer(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", width, width, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, source in (("attn1", width), ("attn2", context)):
        yield f"{block}.{attention}.to_q.weight", (width, width)
        yield f"{block}.{attention}.to_k.weight", (width, source)
        yield f"{block}.{attention}.to_v.weight", (width, source)
        yield from _layer(f"{block}.{attention}.to_out.0", width, width)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * width, width)
    yield from _layer(f"{block}.ff.net.2", width, 4 * width)
    for i in (1, 2, 3):
        yield from _layer(f"{block}.norm{i}", width)
    yield from _layer(f"{name}.proj_out", width, width, 1, 1)


def unet(shape: Shape) -> Sizes:
    width, time = shape.channels[0], 4 * shape.channels[0]
    yield from _layer("time_embed.0", time, width)
    yield from _layer("time_embed.2", time, time)
    yield from _layer("input_blocks.0.0", width, shape.in_channels, 3, 3)
    skips, i = [width], 1
    for level, (channels, attends) in enumerate(zip(shape.channels, shape.attends, strict=True)):
        for _ in range(shape.layers):
            yield from _resnet(f"input_blocks.{i}.0", width, channels, time)
            if attends:
                yield from _transformer(f"input_blocks.{i}.1", channels, shape.context)
            width, i = channels, i + 1
            skips.append(width)
        if level + 1 < len(shape.channels):
            yield from _layer(f"input_blocks.{i}.0.op", width, width, 3, 3)
            i += 1
            skips.append(width)
    yield from _resnet("middle_block.0", width, width, time)
    yield from _transformer("middle_block.1", width, shape.context)
    yield from _resnet("middle_block.2", width, width, time)
    i = 0
    for level in reversed(range(len(shape.channels))):
        channels, attends = shape.channels[level], shape.attends[level]
        for layer in range(shape.layers + 1):
            yield from _resnet(f"output_blocks.{i}.0", width + skips.pop(), channels, time)
            if attends:
                yield from _transformer(f"output_blocks.{i}.1", channels, shape.context)
            width = channels
            if level and layer == shape.layers:
                yield from _layer(f"output_blocks.{i}.{1 + attends}.conv", width, width, 3, 3)
            i += 1
    yield from _layer("out.0", width)
    yield from _layer("out.2", 4, width, 3, 3)


def _vae_resnet(name: str, inside: int, outside: int) -> Sizes:
    yield from _layer(f"{name}.norm1", inside)
    yield from _layer(f"{name}.conv1", outside, inside, 3, 3)
    yield from _layer(f"{name}.norm2", outside)
    yield from _layer(f"{name}.conv2", outside, outside, 3, 3)
    if inside != outside:
        yield from _layer(f"{name}.nin_shortcut", outside, inside, 1, 1)


def _vae_middle(name: str, width: int) -> Sizes:
    yield from _vae_resnet(f"{name}.mid.block_1", width, width)
    yield from _layer(f"{name}.mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{name}.mid.attn_1.{part}", width, width, 1, 1)
    yield from _vae_resnet(f"{name}.mid.block_2", width, width)


def vae(shape: Shape) -> Sizes:
    channels, last = shape.vae_channels, len(shape.vae_channels) - 1
    width = channels[0]
    yield from _layer("encoder.conv_in", width, 3, 3, 3)
    for level, wanted in enumerate(channels):
        for i in range(shape.vae_layers):
            yield from _vae_resnet(f"encoder.down.{level}.block.{i}", width, wanted)
            width = wanted
        if level < last:
            yield from _layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from _vae_middle("encoder", width)
    yield from _layer("encoder.norm_out", width)
    yield from _layer("encoder.conv_out", 8, width, 3, 3)
    yield from _layer("decoder.conv_in", width, 4, 3, 3)
    yield from _vae_middle("decoder", width)
    for level in reversed(range(len(channels))):
        for i in range(shape.vae_layers + 1):
            yield from _vae_resnet(f"decoder.up.{level}.block.{i}", width, channels[level])
            width = channels[level]
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from _layer("decoder.norm_out", width)
    yield from _layer("decoder.conv_out", 3, width, 3, 3)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)


def text_encoder(shape: Shape) -> Sizes:
    width, name = shape.context, "transformer.text_model"
    yield f"{name}.embeddings.position_ids", (1, 77)
    yield f"{name}.embeddings.token_embedding.weight", (49408, width)
    yield f"{name}.embeddings.position_embedding.weight", (77, width)
    for i in range(shape.text_layers):
        layer = f"{name}.encoder.layers.{i}"
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _layer(f"{layer}.self_attn.{part}", width, width)
        yield from _layer(f"{layer}.layer_norm1", width)
        yield from _layer(f"{layer}.mlp.fc1", 4 * width, width)
        yield from _layer(f"{layer}.mlp.fc2", width, 4 * width)
        yield from _layer(f"{layer}.layer_norm2", width)
    yield from _layer(f"{name}.final_layer_norm", width)


def shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor of the file: name -> size."""
    parts = {
        "model.diffusion_model": unet(shape),
        "first_stage_model": vae(shape),
        "cond_stage_model": text_encoder(shape),
    }
    return {f"{prefix}.{name}": size for prefix, sizes in parts.items() for name, size in sizes}


def random_state(shape: Shape, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Weights small enough that activations stay finite; norms start as the identity."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, size in shapes(shape).items():
        if name.endswith("position_ids"):
            state[name] = torch.arange(77).view(1, 77)
        elif len(size) == 1:
            state[name] = (torch.ones if name.endswith("weight") else torch.zeros)(size, dtype=dtype)
        else:
            fan_in = size[1] if len(size) == 2 else size[1] * size[2] * size[3]
            state[name] = (torch.randn(size, generator=generator) * fan_in**-0.5).to(dtype)
    return state


def part(values: dict, prefix: str) -> dict:
    """One part alone, its prefix removed."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def write(path: Path, shape: Shape = FULL, dtype: torch.dtype = torch.float16) -> Path:
    save_file(random_state(shape, dtype), path)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    write(options.file, SMALL if options.small else FULL)


def fake(path, sizes, metadata=None):
    """A .safetensors with a true header and a hole for data: no disk, no time."""
    entries, end = {}, 0
    for name, size in sizes.items():
        start, end = end, end + 2 * torch.Size(size).numel()
        entries[name] = {"dtype": "F16", "shape": list(size), "data_offsets": [start, end]}
    head = json.dumps({"__metadata__": metadata or {}, **entries}).encode()
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + end)
    return path


def change_config(folder, **values):
    """Of a diffusers folder's U-Net."""
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))
