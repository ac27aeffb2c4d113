"""Command-line options, made from the fields of a settings class. All problems are reported in one answer."""

import argparse
import difflib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from ..common.errors import UserError
from .train_config import NAME_RULE, Group, option

Settings = TypeVar("Settings", bound=BaseModel)


@dataclass(frozen=True)
class Takes:
    """What --help calls an option's value; None: the option takes no value."""

    value: str | None


def _is_jsonl(value: Any) -> bool:
    if value not in ("jsonl", True, False):
        raise ValueError("must be jsonl")
    return bool(value)


def _positive(value: Any) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError("must be a whole number from 1")
    return int(value)


def _parts(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return list(dict.fromkeys(part.strip() for part in value.split("|") if part.strip()))


Flag = Annotated[bool, Takes(None)]  # on if named; a plain bool has a --no-… of its own
JsonLines = Annotated[bool, Takes("jsonl"), BeforeValidator(_is_jsonl)]
Positive = Annotated[int, BeforeValidator(_positive)]
Texts = Annotated[list[str], Takes("A|B"), BeforeValidator(_parts)]  # without repetitions
Directory = Annotated[Path | None, Takes("DIR")]
DEVICE = r"^(auto|cpu|mps|cuda(:\d+)?)$"


class ProgramOptions(BaseModel):
    """Options of every command that another program may start."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    events: JsonLines = option(False, "'jsonl': one JSON line for each event on stdout; text for people goes to stderr")
    follow_parent: Flag = option(
        False, "end when standard input is closed, because the program that started this one has ended"
    )


class Parser(argparse.ArgumentParser):
    """Raises what argparse would exit on, so that it can be reported together with the rest."""

    synonyms: Mapping[str, str] = {}  # another program's word for one of the options

    def error(self, message: str) -> Any:
        raise UserError(re.sub(r"^argument (--[\w-]+)[^:]*:", r"\1:", message))


def command_parser(command: str, model: type[BaseModel], description: str, **more: Any) -> Parser:
    """Return the parser of `python -m trainer COMMAND`. Values stay text: `validated` reads them.

    Args: more: further arguments of argparse.ArgumentParser.
    """
    prog = f"python -m trainer {command}".rstrip()
    parser = Parser(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS, **more)
    add_fields(parser, model)
    return parser


def add_fields(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Add one option for each field that was made by train_config.option."""
    add = parser.add_argument
    for name, field in model.model_fields.items():
        if group := _marked(field, Group):
            add = parser.add_argument_group(group.title).add_argument
        options = [f"--{spelling.replace('_', '-')}" for spelling in spellings(name, field)]
        add(*options, dest=name, help=_help(field), **_kind(field))


def spellings(name: str, field: FieldInfo) -> list[str]:
    """Return the names of a setting in files: its own, and older ones that are still understood."""
    also: Any = field.json_schema_extra
    return [name, *also["also"]]


def _marked(field: FieldInfo, mark: type) -> Any:
    return next((found for found in field.metadata if isinstance(found, mark)), None)


def _kind(field: FieldInfo) -> dict[str, Any]:
    """Return what argparse must know about an option's value."""
    if takes := _marked(field, Takes):
        return {"metavar": takes.value} if takes.value else {"action": "store_true"}
    if field.annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"metavar": _value_name(field.annotation)}


def _value_name(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin is Annotated:
        return _value_name(inner[0])
    if (origin is not None and not isinstance(origin, type)) or NoneType in inner:  # a union
        return "|".join(_value_name(part) for part in inner if part is not NoneType)
    return {int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")


def _help(field: FieldInfo) -> str:
    """Return the description with the default, unless the description itself ends with it in brackets."""
    text = (field.description or "").replace("%", "%%")
    if field.default is None or field.default == [] or _marked(field, Takes) or text.endswith("]"):
        return text
    shown = {True: "on", False: "off"}[field.default] if isinstance(field.default, bool) else field.default
    return f"{text} [{shown}]".lstrip()


def read_settings(
    argv: Sequence[str], parser: argparse.ArgumentParser, model: type[Settings], check: Callable[[Settings], list[str]]
) -> Settings:
    """Return the settings that a command line names.

    Args: check: returns a sentence for each contradiction between the settings.
    Raises: UserError listing every problem at once.
    """
    problems: list[str] = []
    settings = validated(model, read_argv(argv, parser, problems), problems)
    refuse(problems + check(settings))
    return settings


def refuse(problems: Sequence[str]) -> None:
    """Raises: UserError listing the problems, if there are any."""
    if problems:
        raise UserError("\n".join(problems))


def read_argv(
    words: Sequence[str], parser: argparse.ArgumentParser, problems: list[str], others: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the options that were given, as text. Adds a sentence to problems for every unknown word.

    Args: others: options that were taken out of words before; a misspelt word may have meant one of these.
    """
    try:
        known, unknown = parser.parse_known_args(words)
    except UserError as error:
        problems.append(str(error))
        return {}
    names = [*others, *(s for action in parser._actions for s in action.option_strings)]
    synonyms = getattr(parser, "synonyms", {})
    follows = set(itertools.pairwise(words))
    for before, word in itertools.pairwise(["", *unknown]):
        name = word.partition("=")[0]
        if not name.startswith("--"):
            if before.startswith("--") and (before, word) in follows:
                continue  # the value of an option that is already reported
            problems.append(f"{word}: unexpected; every setting is an option, such as --steps 500")
        else:
            problems.append(f"{name}: no such option{nearest(name, names, synonyms)}")
    return vars(known)


def nearest(name: str, names: Sequence[str], synonyms: Mapping[str, str] | None = None) -> str:
    """Return the end of a sentence about an unknown name: the known one that resembles it most, if any does.

    Args: synonyms: other words -> the name that each stands for.
    """
    meaning = {**(synonyms or {}), **{name: name for name in names}}
    found = difflib.get_close_matches(name, meaning, n=1, cutoff=0.5)
    return f", did you mean {meaning[found[0]]}?" if found else "; see --help"


def validated(model: type[Settings], values: dict[str, Any], problems: list[str]) -> Settings:
    """Return the settings. Adds a sentence to problems for every faulty value, which its default then replaces."""
    try:
        return model(**values)
    except ValidationError as error:
        problems += explain(error)
        faulty = {fault["loc"][0] for fault in error.errors()}
        return model(**{name: value for name, value in values.items() if name not in faulty})


def taken(model: type[Settings], given: dict[str, Any], problems: list[str]) -> Settings:
    """Return the settings of one class, removed from the options given. Adds a sentence for every faulty value."""
    return validated(model, {name: given.pop(name) for name in list(given) if name in model.model_fields}, problems)


def explain(error: ValidationError) -> list[str]:
    """Return one sentence for each faulty field; a field of several types fails once for each of them."""
    reasons: dict[str, list[str]] = {}
    got: dict[str, Any] = {}
    for fault in error.errors():
        name = str(fault["loc"][0])
        got[name] = fault["input"]
        text = re.sub("^(Input|String) should", "must", fault["msg"].removeprefix("Value error, "))
        if fault["type"] == "string_pattern_mismatch":
            text = {"name": NAME_RULE, "device": "must be auto, cpu, cuda, cuda:N or mps"}[name]
        reasons.setdefault(name, []).append(text)
    return [f"--{k.replace('_', '-')}: {' or '.join(v)}, got {got[k]!r}" for k, v in reasons.items()]
