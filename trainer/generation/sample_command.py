"""The `sample` command: makes a grid of pictures, with or without a LoRA."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from ..common.errors import UserError
from ..common.files import free_path
from ..config.parser import Takes, command_parser, read_settings
from ..config.picture_options import PictureOptions
from ..config.train_config import option
from ..data.contact_sheet import save_grid
from ..models.pipeline import add_lora
from .generate import generate_pictures, settings_of
from .lora_base import with_base_of_lora

MAX_SEEDS = 10_000


def _seeds(value: Any) -> list[int]:
    """Read seeds such as 0-15 or 3,5,8. Raises: ValueError."""
    seeds: list[int] = []
    for part in str(value).split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise ValueError("must be like 0-15 or 3,5,8")
        found = range(int(first), int(last or first) + 1)
        if found.stop > 2**64 or found.stop - found.start > MAX_SEEDS:  # torch's own limit; memory
            raise ValueError(f"must be at most {MAX_SEEDS} numbers below 2**64")
        seeds += found
    if not seeds:
        raise ValueError("must name at least one seed")
    return seeds


class SampleOptions(PictureOptions):
    """The options of `sample`."""

    prompt: str = option("", "what the pictures show (required)")
    seeds: Annotated[list[int], Takes("N-N"), BeforeValidator(_seeds)] = option(
        list(range(16)), "one picture for each seed, such as 0-15 or 3,5,8 [0-15]"
    )
    out: Path = option(Path("grid.png"), "PNG file of the grid; if it exists, the grid gets the next free name")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `sample`."""
    return command_parser("sample", SampleOptions, "Make a grid of pictures with or without a LoRA.")


def _problems(options: SampleOptions) -> list[str]:
    """Return one sentence for each missing or unusable option."""
    problems = []
    if "prompt" not in options.model_fields_set:
        problems.append("--prompt: say what the pictures show")
    if options.lora and not options.lora.is_file():
        problems.append(f"--lora: no file {options.lora}")
    if options.out.suffix.lower() != ".png" or options.out.is_dir():
        problems.append(f"--out: {options.out} must end in .png and must not be a folder")
    return problems


def _check_writable(path: Path) -> None:
    """Raises: UserError if the file cannot be written. Called before the pictures are made, which takes long."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written ({error.strerror})") from None


def main(argv: Sequence[str]) -> int:
    """Run the `sample` command. Returns: an exit code. Raises: UserError."""
    argv, found = with_base_of_lora(argv)
    options = read_settings(argv, make_parser(), SampleOptions, _problems)
    if found:
        print(found, file=sys.stderr)
    _check_writable(options.out)
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
    images = generate_pictures(pipe, options.prompt, options.seeds, settings_of(options))
    out = free_path(options.out)
    save_grid(images, out)
    print(out)
    return 0
