"""What `sample` can be asked for, and what other commands that make pictures share of it."""

import argparse
import re
from pathlib import Path

MOST_SEEDS = 10_000


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer sample", description="Make pictures with a LoRA.", allow_abbrev=False
    )
    add_model_options(parser)
    add_picture_options(parser)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seeds", type=_seeds, default=list(range(16)), help="such as 0-15 or 3,5,8 [0-15]")
    parser.add_argument("--out", type=Path, default=Path("grid.png"), help="PNG file [grid.png]")
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, with which LoRA, where."""
    parser.add_argument("--base", default="builtin", help="model file, diffusers folder, hub id or 'builtin' [builtin]")
    parser.add_argument("--vae", type=Path, help="another VAE than the model's own")
    parser.add_argument(
        "--prediction-type", choices=("auto", "epsilon", "v"), default="auto", help="as in training [auto]"
    )
    parser.add_argument("--lora", type=Path, help="LoRA file; without it the base model")
    parser.add_argument("--strength", type=float, default=1.0, help="of the LoRA [1]")
    parser.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """How a picture is made."""
    parser.add_argument("--resolution", type=_resolution, help="pixels [512; 64 for builtin]")
    parser.add_argument("--steps", type=_positive, default=25, help="of the sampler [25]")
    parser.add_argument("--guidance", type=float, help="guidance scale; 1: none [7.5; 1 for builtin]")
    parser.add_argument(
        "--clip-skip", type=_positive, default=1, help="the text encoder's last layers to leave out [1]"
    )


def _seeds(text: str) -> list[int]:
    seeds = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise argparse.ArgumentTypeError(f"must be like 0-15 or 3,5,8, got {text!r}")
        found = range(int(first), int(last or first) + 1)
        if found.stop > 2**64 or found.stop - found.start > MOST_SEEDS:  # torch's own limit; the computer's memory
            raise argparse.ArgumentTypeError(f"must be at most {MOST_SEEDS} numbers below 2**64, got {text!r}")
        seeds += found
    if not seeds:
        raise argparse.ArgumentTypeError(f"no seeds in {text!r}")
    return seeds


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda, cuda:N or mps, got {text!r}")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _resolution(text: str) -> int:
    if _positive(text) % 8:
        raise argparse.ArgumentTypeError(f"must be a multiple of 8, got {text}")
    return int(text)
