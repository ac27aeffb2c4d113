"""argv and TOML -> TrainConfig. Every problem is reported, all in one answer, before anything slow is imported."""

import argparse
import difflib
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..builtin import BUILTIN
from ..common.errors import UserError
from . import kohya_flags
from .train_config import FREE_ON_RESUME, NAME_RULE, PRESETS, TrainConfig
from .validation import contradictions, differences

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# How a command is run, not what it makes: these are not saved with the run.
FLAGS = {
    "config": "TOML file of settings; options on the command line win over it",
    "resume": "go on with the interrupted run of this --name; without one, with the newest in --output-dir",
    "dry-run": "print the settings and stop",
    "events": "'jsonl': one JSON line for each event on stdout, people's text on stderr",
    "follow-parent": "end when standard input is closed: the program that started this one is gone",
    "sheet": "with the command data: PNG of the first images",
    "lowvram": "preset for cards of 4 GB: what is fastest in 2.4 GiB",
    "medvram": "preset for cards of 6 GB: what is fastest in 4.8 GiB",
    "highvram": "preset for large cards: nothing is saved; fp8 weights if not even one sample fits",
}


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


class Parser(argparse.ArgumentParser):
    """Collects what argparse would exit on, so that it can be reported together with the rest."""

    def error(self, message: str) -> Any:
        raise UserError(re.sub(r"^argument (--[\w-]+)[^:]*:", r"\1:", message))


def make_parser() -> argparse.ArgumentParser:
    """The command line, generated from TrainConfig's fields. Values stay text: pydantic reads them."""
    parser = Parser(
        prog="python -m trainer",
        description="Teach Stable Diffusion 1.x what not to generate, from unlabeled and sensitive images. "
        "Without options: real handwritten digits on a built-in miniature model.",
        epilog="other commands: make-data, sample, evaluate, compare, reproduce, audit, bench, ui (each has a --help); "
        "plan, data and prior take these options",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for flag, text in FLAGS.items():
        takes_value = {"config": "FILE", "events": "jsonl", "sheet": "FILE"}.get(flag)
        extra = {"metavar": takes_value} if takes_value else {"action": "store_true"}
        parser.add_argument(f"--{flag}", dest="_" + flag.replace("-", "_"), help=text, **extra)
    add_fields(parser, TrainConfig)
    return parser


def add_fields(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """One option for each field that was made by config.option."""
    for name, field in model.model_fields.items():
        spellings = [f"--{s.replace('_', '-')}" for s in (name, *field.json_schema_extra["also"])]
        text = field.description.replace("%", "%%") + f" [{_show(field.default)}]"
        kind = {"action": argparse.BooleanOptionalAction} if field.annotation is bool else {"metavar": "X"}
        parser.add_argument(*spellings, dest=name, help=text, **kind)


def _show(default: Any) -> str:
    return "none" if default is None else str(default)


def parse(
    argv: Sequence[str], builtin_config: Path, *, needs_images: bool = True, others: Sequence[str] = ()
) -> Invocation:
    """argv -> settings. Later wins: field defaults, built-in default, the resumed run, --config, preset, argv.

    Args:
        builtin_config: TOML that applies when neither a model of one's own nor folders are named.
        needs_images: whether a model of one's own calls for folders.
        others: options that were taken out of argv before; a misspelt word may have meant one of these.
    Raises: UserError listing every problem at once.
    """
    problems: list[str] = []
    given = read_argv(kohya_flags.translate(argv, problems), make_parser(), problems, others)
    flags = {key[1:]: given.pop(key) for key in list(given) if key.startswith("_")}
    if flags.get("events", "jsonl") != "jsonl":
        problems.append(f"--events: must be jsonl, got {flags['events']!r}")
    from_file = read_toml(Path(flags["config"]), problems) if "config" in flags else {}
    preset = {k: v for name, values in PRESETS.items() if flags.get(name) for k, v in values.items()}
    own = {**from_file, **preset, **given}
    is_builtin = own.get("base", BUILTIN) == BUILTIN and not {"unlabeled", "sensitive", "data"} & own.keys()
    defaults = read_toml(builtin_config, problems) if is_builtin else {}
    merged = {**defaults, **own}
    if flags.get("resume"):
        said = {k: v for k, v in own.items() if k in from_file or k in given or k in FREE_ON_RESUME}
        merged = _continue(merged, said, problems)  # a preset has no say in what must not change
        is_builtin = merged.get("base", BUILTIN) == BUILTIN and not {"unlabeled", "sensitive", "data"} & merged.keys()
    try:
        config = TrainConfig(**merged)
    except ValidationError as error:
        problems += explain(error)
    else:
        problems += contradictions(config, needs_images=needs_images)
    if problems:
        raise UserError("\n".join(problems))
    return Invocation(
        config,
        is_builtin,
        resume=bool(flags.get("resume")),
        dry_run=bool(flags.get("dry_run")),
        events="events" in flags,
        follow_parent=bool(flags.get("follow_parent")),
        sheet=Path(flags["sheet"]) if "sheet" in flags else None,
    )


def read_argv(
    words: Sequence[str], parser: argparse.ArgumentParser, problems: list[str], others: Sequence[str] = ()
) -> dict[str, Any]:
    """What was given, as text. Adds a sentence to problems for every word that means nothing."""
    try:
        known, unknown = parser.parse_known_args(words)
    except UserError as error:
        problems.append(str(error))
        return {}
    names = [*others, *(s for action in parser._actions for s in action.option_strings)]
    follows = set(itertools.pairwise(words))
    for before, word in itertools.pairwise(["", *unknown]):
        name = word.partition("=")[0]
        if not name.startswith("--"):
            if before.startswith("--") and (before, word) in follows:
                continue  # the value of an option that is already reported
            problems.append(f"{word}: unexpected; every setting is an option, such as --steps 500")
        else:
            problems.append(f"{name}: no such option{_nearest(name, names)}")
    return vars(known)


def _nearest(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f", did you mean {found[0]}?" if found else "; see --help"


def read_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"--config: cannot read {path}: {error}")
        return {}
    names = {s: n for n, f in TrainConfig.model_fields.items() for s in (n, *f.json_schema_extra["also"])}
    known = {}
    for key, value in kohya_flags.flat(table):
        found = kohya_flags.take(key, value, f"{path}: {key}", problems) if key in kohya_flags.FLAGS else (key, value)
        if found is None:
            continue
        if name := names.get(found[0]):
            known[name] = found[1]
        else:
            problems.append(f"{path}: no setting named {key!r}{_nearest(key, list(names))}")
    return known


def _continue(merged: dict, own: dict, problems: list[str]) -> dict[str, Any]:
    """The interrupted run's settings, with what was said anew where that cannot change what it learns."""
    output = Path(merged.get("output_dir", TrainConfig.model_fields["output_dir"].default))
    folder = output / str(own["name"]) if "name" in own else _newest_interrupted(output)
    done = _steps_done(folder) if folder else 0
    if not done:
        where = folder or output
        problems.append(f"--resume: {where} holds no interrupted run. Give the --name and --output-dir it had.")
        return merged
    saved = {**read_toml(folder / "config.toml", problems), "name": folder.name, "output_dir": output}
    if "data" in own:  # stands for both
        saved = {k: v for k, v in saved.items() if k not in ("unlabeled", "sensitive")}
    try:
        before, now = TrainConfig(**saved), TrainConfig(**{**saved, **own})
    except ValidationError as error:
        problems += explain(error)
        return saved
    problems += differences(before, now, own, steps_done=done)
    return {**saved, **{k: v for k, v in own.items() if k in FREE_ON_RESUME}}


def _newest_interrupted(output: Path) -> Path | None:
    """The run that saved its state last, of those that are not finished."""
    runs = [path.parent for path in output.glob("*/state") if _steps_done(path.parent)]
    interrupted = [run for run in runs if not _is_done(run)]
    return max(interrupted, key=lambda run: (run / "state").stat().st_mtime, default=None)


def _steps_done(run: Path) -> int:
    """At the newest state; 0 where there is none."""
    numbers = [path.stem.removeprefix("step") for path in (run / "state").glob("step*.safetensors")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _is_done(run: Path) -> bool:
    """Whether done is its last event: before that, it may have been resumed for more steps."""
    try:
        lines = (run / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return '"event": "done"' in lines[-1] if lines else False


def explain(error: ValidationError) -> list[str]:
    """One sentence for each field; a field of several types fails once for each of them."""
    reasons: dict[str, list[str]] = {}
    got: dict[str, Any] = {}
    for fault in error.errors():
        name = str(fault["loc"][0])
        got[name] = fault["input"]
        text = re.sub("^(Input|String) should", "must", fault["msg"].removeprefix("Value error, "))
        if fault["type"] == "string_pattern_mismatch":
            text = {"name": NAME_RULE, "device": "must be as --help says"}[name]
        reasons.setdefault(name, []).append(text)
    return [f"--{k.replace('_', '-')}: {' or '.join(v)}, got {got[k]!r}" for k, v in reasons.items()]


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
