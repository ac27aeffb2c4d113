"""argv and TOML -> TrainConfig. Every problem is reported, all in one answer, before anything slow is imported."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError

from ..builtin import BUILTIN
from . import kohya_flags
from .lora_settings import read_lora
from .parser import (
    Flag,
    Parser,
    ProgramOptions,
    Takes,
    add_fields,
    command_parser,
    explain,
    nearest,
    read_argv,
    refuse,
    spellings,
    taken,
    validated,
)
from .train_config import FREE_ON_RESUME, PRESETS, TrainConfig, option
from .validation import contradictions, differences

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

File = Annotated[Path | None, Takes("FILE")]
COMMANDS = {  # beside training; in the order in which a newcomer meets them
    "data": "say what the two folders hold, without training",
    "plan": "predict the peak memory of a training, and choose settings that fit",
    "audit": "rank the unlabeled images by how likely they are sensitive",
    "prior": "estimate how many of the unlabeled images are sensitive",
    "sample": "make a grid of pictures with or without a LoRA",
    "evaluate": "measure what a LoRA unlearned, and what it withstands",
    "compare": "show runs side by side, or train a sweep of settings",
    "make-data": "make both folders with the base model, for those who have none",
    "ui": "open the page that trains from a browser",
    "reproduce": "repeat the paper's experiments",
    "bench": "measure the speed of a training step",
}
FIRST = ("lowvram", "base", "unlabeled", "sensitive", "prompt", "name", "steps", "temperature", "resume")


class RunOptions(ProgramOptions):
    """How a training is run, not what it makes: these options are not saved with the run."""

    config: File = option(None, "TOML file of settings; options on the command line win over it")
    settings_from: File = option(None, "LoRA of this trainer: start from the settings in its metadata, its prior too")
    resume: Flag = option(
        False, "resume the interrupted run of this --name, or the newest one in --output-dir if no name is given"
    )
    dry_run: Flag = option(False, "print the settings and stop")
    sheet: File = option(None, "with the command data: PNG file that shows the first images")
    lowvram: Flag = option(False, "preset for GPUs with 4 GB: the fastest settings that fit in 2.4 GiB")
    medvram: Flag = option(False, "preset for GPUs with 6 GB: the fastest settings that fit in 4.8 GiB")
    highvram: Flag = option(
        False, "preset for large GPUs: saves no memory; fp8 weights only if not even one sample fits"
    )


@dataclass(frozen=True)
class Invocation:
    """A parsed command line: the settings, and how to run them."""

    config: TrainConfig
    is_builtin: bool  # nothing of the user's own was named
    resume: bool
    dry_run: bool
    events: bool
    follow_parent: bool
    sheet: Path | None  # of the command `data`


class Help(argparse.Action):
    """--help: the options that matter first and the commands; --help all: every option, by group."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, value: Any, option: str | None = None) -> None:
        print(parser.format_help() if value == "all" else short_help(parser), end="")
        parser.exit()


def short_help(parser: argparse.ArgumentParser) -> str:
    """Return the help of a newcomer: what matters first, and the other commands."""
    raw = argparse.RawDescriptionHelpFormatter  # keeps the lines of the commands
    short = argparse.ArgumentParser(prog=parser.prog, usage=parser.usage, formatter_class=raw, add_help=False)
    short.description = textwrap.fill(str(parser.description), 78)
    options = {action.dest: action for action in parser._actions}
    first = short.add_argument_group("options that matter first")
    for name in FIRST:
        first._add_action(options[name])
    commands = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    short.epilog = f"commands (each has a --help):\n{commands}\n\nall options, by group: {parser.prog} --help all"
    return short.format_help()


def make_parser() -> Parser:
    """Return the parser of a training, generated from the fields of RunOptions and TrainConfig."""
    parser = command_parser(
        "",
        RunOptions,
        "Teach Stable Diffusion 1.x what not to generate, from unlabeled and sensitive images. "
        "Without options: real handwritten digits on a built-in miniature model.",
        usage="python -m trainer [COMMAND] [OPTIONS]",
        add_help=False,
    )
    parser.synonyms = {f"--{flag}": f"--{ours.replace('_', '-')}" for flag, (ours, _) in kohya_flags.MEANS.items()}
    parser.add_argument(
        "-h", "--help", action=Help, nargs="?", metavar="all", help="show the options that matter first, or all"
    )
    add_fields(parser, TrainConfig)
    return parser


def parse(
    argv: Sequence[str], builtin_config: Path, *, needs_images: bool = True, others: Sequence[str] = ()
) -> Invocation:
    """Return the settings of a training.

    Later ones win: field defaults, built-in default, --settings-from, --config, preset, argv.

    A resumed run keeps its own, but for those that cannot change what it learns.

    Args:
        builtin_config: TOML that applies when the user names neither a model nor folders.
        needs_images: whether a model that the user names needs folders of images, too.
        others: options that were taken out of argv before; a misspelt word may have meant one of these.
    Raises: UserError listing every problem at once.
    """
    problems: list[str] = []
    given = read_argv(kohya_flags.translate(argv, problems), make_parser(), problems, others)
    how = taken(RunOptions, given, problems)
    from_lora = read_lora(how.settings_from, problems) if how.settings_from else {}
    from_file = {**from_lora, **(read_toml(how.config, problems) if how.config else {})}
    presets = [name for name in PRESETS if getattr(how, name)]
    if len(presets) > 1:
        problems.append(f"--{' and --'.join(presets)}: give one of them, each fits another size of GPU")
    preset = {k: v for name in presets for k, v in PRESETS[name].items()}
    own = {**from_file, **preset, **given}
    is_builtin = _names_nothing(own)
    merged = {**(read_toml(builtin_config, problems) if is_builtin else {}), **own}
    if how.resume:
        said = {k: v for k, v in own.items() if k in from_file or k in given or k in FREE_ON_RESUME}
        merged = _continue(merged, said, problems)  # a preset cannot change what a resumed run must keep
        is_builtin = _names_nothing(merged)
    config = validated(TrainConfig, merged, problems)
    refuse(problems + contradictions(config, needs_images=needs_images))
    return Invocation(config, is_builtin, how.resume, how.dry_run, how.events, how.follow_parent, how.sheet)


def _names_nothing(settings: dict[str, Any]) -> bool:
    """Return whether neither a model nor folders of the user's own are named."""
    return settings.get("base", BUILTIN) == BUILTIN and not {"unlabeled", "sensitive", "data"} & settings.keys()


def read_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the settings of a TOML file, kohya's names included. Adds a sentence to problems for every unknown one."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"--config: cannot read {path}: {error}")
        return {}
    names = {s: n for n, f in TrainConfig.model_fields.items() for s in spellings(n, f)}
    known = {}
    for key, value in kohya_flags.flat(table):
        found = kohya_flags.take(key, value, f"{path}: {key}", problems) if key in kohya_flags.FLAGS else (key, value)
        if found is None:
            continue
        if name := names.get(found[0]):
            known[name] = found[1]
        else:
            problems.append(f"{path}: no setting named {key!r}{nearest(key, list(names))}")
    return known


def _continue(merged: dict, own: dict, problems: list[str]) -> dict[str, Any]:
    """Return the interrupted run's settings, with those given now that cannot change what it learns."""
    output = Path(merged.get("output_dir", TrainConfig.model_fields["output_dir"].default))
    folder = output / str(own["name"]) if "name" in own else _newest_interrupted(output)
    if not folder or not _is_resumable(folder):
        where = folder or output
        problems.append(f"--resume: {where} holds no interrupted run. Give the --name and --output-dir it had.")
        return merged
    saved = {**read_toml(folder / "config.toml", problems), "name": folder.name, "output_dir": output}
    if isinstance(saved.get("prior"), float):  # runs from before --sensitive-weight had the paper's
        saved.setdefault("sensitive_weight", saved["prior"])
    if "data" in own:  # replaces both folders
        saved = {k: v for k, v in saved.items() if k not in ("unlabeled", "sensitive")}
    try:
        before, now = TrainConfig(**saved), TrainConfig(**{**saved, **own})
    except ValidationError as error:
        problems += explain(error)
        return saved
    problems += differences(before, now, own, steps_done=_steps_done(folder))
    return {**saved, **{k: v for k, v in own.items() if k in FREE_ON_RESUME}}


def _newest_interrupted(output: Path) -> Path | None:
    """Return the unfinished run that was written to last."""
    runs = [path.parent for path in output.glob("*/config.toml")]
    interrupted = [run for run in runs if _is_resumable(run) and not _is_done(run)]
    return max(interrupted, key=_last_written, default=None)


def _last_written(run: Path) -> float:
    """Return when a run's events or states were written last, in seconds since 1970."""
    places = (run / name for name in ("config.toml", "events.jsonl", "state"))
    return max(place.stat().st_mtime for place in places if place.exists())


def _is_resumable(run: Path) -> bool:
    """Return whether a run has saved a state, or its settings and no result: it was stopped before its first state."""
    has_result = run.with_name(f"{run.name}.safetensors").exists() or run.with_name(f"{run.name}-model").exists()
    return _steps_done(run) > 0 or ((run / "config.toml").is_file() and not has_result)


def _steps_done(run: Path) -> int:
    """Return the step of a run's newest state; 0 if it has none."""
    numbers = [path.stem.removeprefix("step") for path in (run / "state").glob("step*.safetensors")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _is_done(run: Path) -> bool:
    """Return whether done is a run's last event; one further up means that the run was resumed for more steps."""
    try:
        lines = (run / "events.jsonl").read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    except OSError:
        return False
    return '"event": "done"' in lines[-1] if lines else False
