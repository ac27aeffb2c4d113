"""The `sample` command: a grid of pictures with or without a LoRA."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import UserError
from ..config.arguments import add_model_options, add_picture_options
from ..data.contact_sheet import save_grid
from ..models.pipeline import add_lora
from .generate import PictureSettings, generate_pictures

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


def _check_place(path: Path) -> None:
    """Raises: UserError where no file can be written, before the pictures are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written ({error.strerror})") from None


def main(argv: Sequence[str]) -> int:
    """The `sample` command. Raises: UserError. Returns: exit code."""
    options = make_parser().parse_args(argv)
    is_builtin = options.base == "builtin"
    if options.lora and not options.lora.is_file():
        raise UserError(f"--lora: no file {options.lora}")
    if options.out.suffix.lower() != ".png" or options.out.is_dir():
        raise UserError(f"--out: {options.out} must end in .png and be no folder")
    _check_place(options.out)
    from ..memory import devices
    from ..memory.memory_plan import DTYPES
    from ..models import base_model, hub, pipeline

    base = base_model.Base(hub.resolve_model_path(options.base), options.vae, options.prediction_type)
    base_model.check(base, clip_skip=options.clip_skip)
    device = devices.choose_device(options.device)
    dtype = DTYPES[devices.choose_precision("auto", device)]
    pipe = pipeline.load_pipeline(base, base_model.load_unet(base, dtype))
    if options.lora:
        add_lora(pipe, options.lora, options.strength)
    pipe.unet.to(device)
    images = generate_pictures(
        pipe,
        options.prompt,
        options.seeds,
        PictureSettings(
            resolution=options.resolution or (64 if is_builtin else 512),
            steps=options.steps,
            guidance=(1.0 if is_builtin else 7.5) if options.guidance is None else options.guidance,
            clip_skip=options.clip_skip,
        ),
    )
    save_grid(images, options.out)
    print(options.out)
    return 0
