"""The base model of a LoRA, for `sample` and `evaluate` without --base: its metadata and its run's folder name it."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..builtin import BUILTIN
from ..common.errors import UserError
from ..common.model_files import is_hub_id
from ..config.arguments import read_toml
from ..config.parser import Parser
from ..models import single_file


def with_base_of_lora(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Add --base to a command line that names a LoRA, but no base model.

    Returns: (the command line, a sentence about the base model found; None where the command line stays as it is).
    Raises: UserError if the LoRA was trained on a model that is not found.
    """
    words = list(argv)
    lora = _lora_without_base(words)
    if lora is None or not lora.is_file():
        return words, None
    try:
        _, metadata = single_file.header(lora)
    except UserError:  # a damaged file: loading says so
        return words, None
    base = _base_of_run(lora)
    name = _base_name(metadata)
    if BUILTIN in (base, name):
        return words, None  # the default
    if base is None and name and is_hub_id(name):
        base = name
    if base is None:
        trained = f"{lora} was trained on {name}" if name else f"{lora} does not say which model it was trained on"
        raise UserError(f"--base: {trained}; name that model's file, folder or hub id")
    return [*words, f"--base={base}"], f"base model: {base}, which {lora.name} was trained on"


def _lora_without_base(words: Sequence[str]) -> Path | None:
    parser = Parser(add_help=False, allow_abbrev=False)
    for name in ("--base", "--lora"):
        parser.add_argument(name)
    try:
        given: argparse.Namespace = parser.parse_known_args(words)[0]
    except UserError:  # an option without its value: the command's own parser reports it
        return None
    return None if given.base or not given.lora else Path(given.lora)


def _base_of_run(lora: Path) -> str | None:
    """Return the base model of the run whose folder lies beside the LoRA; None if there is no run or no such model."""
    config = lora.with_suffix("") / "config.toml"
    problems: list[str] = []
    base = read_toml(config, problems).get("base") if config.is_file() else None
    is_known = base and not problems and (base == BUILTIN or Path(base).exists() or is_hub_id(base))
    return base if is_known else None


def _base_name(metadata: dict[str, str]) -> str | None:
    """Return what a LoRA's metadata calls its base model: ours has no folder in it, kohya's may."""
    try:
        ours = json.loads(metadata.get("pu_config", "{}")).get("base")
    except (ValueError, AttributeError):
        ours = None
    return ours or metadata.get("ss_sd_model_name")
