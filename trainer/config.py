"""Every setting of a run, once: default, range, help. The command line, TOML files and schema.json come from here."""

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUILTIN = "builtin"


def option(default: Any, text: str, *, exposed: bool = False, also: tuple[str, ...] = (), **limits: Any) -> Any:
    """One setting. `exposed` ones become widgets: never a path, a program or a class name. `also`: other spellings."""
    return Field(default, description=text, json_schema_extra={"exposed": exposed, "also": list(also)}, **limits)


class TrainConfig(BaseModel):
    """The settings of one training run. Frozen; made by `parse`, saved as config.toml in the run folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # what to learn from
    base: str | None = option(
        None,
        "Stable Diffusion 1.x model in diffusers layout (a folder), or 'builtin'",
        also=("pretrained_model_name_or_path",),
    )
    unlabeled: Path | None = option(None, "folder of unlabeled images: the mixture nobody cleaned")
    sensitive: Path | None = option(None, "folder of sensitive images: what must not come out")
    data: Path | None = option(None, "folder that holds both, as unlabeled/ and sensitive/")
    prompt: str | None = option(None, "caption of images without a .txt or .caption file beside them", exposed=True)
    sensitive_prompt: str | None = option(
        None, "caption that names what is sensitive; unlearned there too", exposed=True
    )
    resolution: int = option(512, "pixels of the square that images are cropped to", ge=64, le=1024, multiple_of=8)
    flip: bool = option(False, "mirror half of the images", exposed=True)
    crops: int = option(
        1, "versions of each image, cropped differently; more help where images are few", exposed=True, ge=1, le=64
    )
    caption_dropout: float = option(0.05, "share of samples trained on the empty caption", ge=0, lt=1)
    skip_bad_images: bool = option(False, "skip images that cannot be read instead of refusing to start")

    # the objective
    objective: Literal["pu", "nnpu", "supervised", "unsupervised"] = option(
        "pu", "pu and nnpu unlearn from a mixture; supervised and unsupervised are baselines", exposed=True
    )
    prior: float = option(
        0.2, "share of sensitive images hidden in the unlabeled ones", exposed=True, also=("beta",), gt=0, lt=1
    )
    temperature: float = option(2.0, "strength: larger unlearns harder, too large destroys", exposed=True, gt=0)
    temperature_mode: Literal["per-timestep", "fixed"] = option(
        "per-timestep", "temperature counts in the base model's own error at each timestep, or is a plain number"
    )
    calibration_samples: int = option(24, "samples for each of the 20 bins that measure the base model's error", ge=1)
    sensitive_prompt_share: float = option(
        0.5, "extra sensitive samples under their own caption, as a share of --batch-sensitive", ge=0, le=4
    )

    # training
    steps: int = option(1000, "optimizer steps", exposed=True, also=("max_train_steps",), ge=1)
    batch_unlabeled: int = option(16, "unlabeled samples in one step", ge=1)
    batch_sensitive: int = option(8, "sensitive samples in one step, under unlabeled captions", ge=1)
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = option(
        4, "samples in the U-Net at once ('auto': as many as fit); changes memory and speed, not the result"
    )
    lr: float = option(1e-4, "learning rate", exposed=True, also=("learning_rate",), gt=0, le=1)
    warmup_steps: int = option(20, "steps over which the learning rate rises; then it falls as a cosine", ge=0)
    max_grad_norm: float = option(1.0, "longer gradients are shortened to this", gt=0)
    weight_decay: float = option(0.01, "AdamW's pull of the LoRA towards zero", ge=0)
    rank: int = option(16, "LoRA rank", exposed=True, also=("network_dim",), ge=1, le=256)
    alpha: float | None = option(None, "LoRA alpha; the rank if not given", also=("network_alpha",), gt=0)
    optimizer: Literal["adamw", "adamw8bit"] = option("adamw", "adamw8bit needs bitsandbytes", also=("optimizer_type",))
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "number format of the U-Net's arithmetic", also=("mixed_precision",)
    )
    save_precision: Literal["fp16", "bf16", "fp32"] = option("fp16", "number format of the LoRA file")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    seed: int = option(0, "seed of everything random", exposed=True, ge=0, lt=2**32)

    # results
    name: str = option(
        "pu-lora",
        "name of the LoRA and of its run folder",
        exposed=True,
        also=("output_name",),
        pattern=r"^[A-Za-z0-9][\w .+-]*$",
        max_length=100,
    )
    output_dir: Path = option(Path("output"), "where the LoRA and the run folder go")
    keep_cache: bool = option(False, "keep the encoded images in the run folder")
    metadata: Literal["safe", "full"] = option("safe", "full writes the captions of sensitive images into the LoRA")
    images: int = option(16, "pictures made before and after with the same seeds", ge=0, le=100)
    sample_every: int = option(0, "steps between pictures during training; 0: none", ge=0)
    sample_steps: int = option(25, "steps of the sampler that makes the pictures", ge=1, le=1000)
    guidance: float = option(7.5, "guidance scale of the pictures; 1: none", ge=1, le=30)
    rate_images: int = option(0, "pictures made before and after for the non-sensitive rate (built-in digits)", ge=0)

    @property
    def effective_alpha(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha


PRESETS = {"lowvram": {"micro_batch": "auto"}}

# How a command is run, not what it makes: these are not saved with the run.
FLAGS = {
    "config": "TOML file of settings; options on the command line win over it",
    "resume": "go on with the interrupted run of this --name",
    "dry-run": "print the settings and stop",
    "events": "'jsonl': one JSON line for each event on stdout, people's text on stderr",
    "lowvram": "preset for small graphics cards: micro-batch as large as fits",
}

# May differ between a run and its continuation: where it computes and what it shows, not what it learns.
FREE_ON_RESUME = {"device", "micro_batch", "keep_cache", "images", "sample_every", "rate_images", "output_dir"}

HINTS = {"lowram": "--lowram means the opposite elsewhere (weights into VRAM to save RAM); for small cards: --lowvram"}


@dataclass(frozen=True)
class Invocation:
    """A parsed command line: the settings, and how to run them."""

    config: TrainConfig
    is_builtin: bool  # nothing of the user's own was named
    resume: bool
    dry_run: bool
    events: bool


class _Parser(argparse.ArgumentParser):
    """Collects what argparse would exit on, so that it can be reported together with the rest."""

    def error(self, message: str) -> Any:
        raise UserError(re.sub(r"^argument (--[\w-]+)[^:]*:", r"\1:", message))


def make_parser() -> argparse.ArgumentParser:
    """The command line, generated from TrainConfig's fields. Values stay text: pydantic reads them."""
    parser = _Parser(
        prog="python -m trainer",
        description="Teach Stable Diffusion 1.x what not to generate, from unlabeled and sensitive images. "
        "Without options: real handwritten digits on a built-in miniature model.",
        epilog="other commands: python -m trainer sample --help",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for flag, text in FLAGS.items():
        takes_value = {"config": "FILE", "events": "jsonl"}.get(flag)
        extra = {"metavar": takes_value} if takes_value else {"action": "store_true"}
        parser.add_argument(f"--{flag}", dest="_" + flag.replace("-", "_"), help=text, **extra)
    for name, field in TrainConfig.model_fields.items():
        spellings = [f"--{s.replace('_', '-')}" for s in (name, *field.json_schema_extra["also"])]
        text = field.description.replace("%", "%%") + f" [{_show(field.default)}]"
        kind = {"action": argparse.BooleanOptionalAction} if field.annotation is bool else {"metavar": "X"}
        parser.add_argument(*spellings, dest=name, help=text, **kind)
    return parser


def _show(default: Any) -> str:
    return "none" if default is None else str(default)


def parse(argv: Sequence[str], builtin_config: Path, saved_config: Any = None) -> Invocation:
    """argv -> settings. Later wins: field defaults, built-in default, the resumed run, --config, preset, argv.

    Args:
        builtin_config: TOML that applies when neither a model of one's own nor folders are named.
    Raises: UserError listing every problem at once.
    """
    problems: list[str] = []
    given = _read_argv(argv, problems)
    flags = {key[1:]: given.pop(key) for key in list(given) if key.startswith("_")}
    if flags.get("events", "jsonl") != "jsonl":
        problems.append(f"--events: must be jsonl, got {flags['events']!r}")
    from_file = _read_toml(Path(flags["config"]), problems) if "config" in flags else {}
    preset = {k: v for name, values in PRESETS.items() if flags.get(name) for k, v in values.items()}
    own = {**from_file, **preset, **given}
    is_builtin = own.get("base", BUILTIN) == BUILTIN and not {"unlabeled", "sensitive", "data"} & own.keys()
    defaults = _read_toml(builtin_config, problems) if is_builtin else {}
    merged = {**defaults, **own}
    if flags.get("resume"):
        merged = _continue(merged, own, problems)
        is_builtin = merged.get("base", BUILTIN) == BUILTIN and not {"unlabeled", "sensitive", "data"} & merged.keys()
    try:
        config = TrainConfig(**merged)
    except ValidationError as error:
        problems += _explain(error)
    else:
        problems += _contradictions(config)
    if problems:
        raise UserError("\n".join(problems))
    return Invocation(config, is_builtin, bool(flags.get("resume")), bool(flags.get("dry_run")), "events" in flags)


def _read_argv(argv: Sequence[str], problems: list[str]) -> dict[str, Any]:
    parser = make_parser()
    words = [_dashed(word) for word in argv]
    try:
        known, unknown = parser.parse_known_args(words)
    except UserError as error:
        problems.append(str(error))
        return {}
    names = [s for action in parser._actions for s in action.option_strings]
    for word in unknown:
        name = word.partition("=")[0]
        if not name.startswith("--"):
            problems.append(f"{word}: unexpected; every setting is an option, such as --steps 500")
        else:
            problems.append(HINTS.get(name[2:]) or f"{name}: no such option{_nearest(name, names)}")
    return vars(known)


def _dashed(word: str) -> str:
    """kohya's spelling of an option (--max_train_steps) in ours; values stay as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _nearest(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f", did you mean {found[0]}?" if found else "; see --help"


def _read_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"--config: cannot read {path}: {error}")
        return {}
    names = {s: n for n, f in TrainConfig.model_fields.items() for s in (n, *f.json_schema_extra["also"])}
    known = {}
    for key, value in table.items():
        if key in names:
            known[names[key]] = value
        else:
            problems.append(f"{path}: no setting named {key!r}{_nearest(key, list(names))}")
    return known


def _continue(merged: dict, own: dict, problems: list[str]) -> dict[str, Any]:
    """The interrupted run's settings, with what was said anew where that cannot change what it learns."""
    name = merged.get("name", TrainConfig.model_fields["name"].default)
    folder = Path(merged.get("output_dir", TrainConfig.model_fields["output_dir"].default)) / str(name)
    if not (folder / "state" / "state.json").exists():
        problems.append(f"--resume: {folder} holds no interrupted run. Give the --name and --output-dir it had.")
        return merged
    saved = _read_toml(folder / "config.toml", problems)
    try:
        before, now = TrainConfig(**saved), TrainConfig(**{**saved, **own})
    except ValidationError as error:
        problems += _explain(error)
        return saved
    for key in own:
        if key not in FREE_ON_RESUME and getattr(before, key) != getattr(now, key):
            was, new = getattr(before, key), getattr(now, key)
            problems.append(f"--{key.replace('_', '-')}: this run was started with {was}, not {new}; leave it out")
    return {**saved, **{k: v for k, v in own.items() if k in FREE_ON_RESUME}}


def _explain(error: ValidationError) -> list[str]:
    """One sentence for each field; a field of several types fails once for each of them."""
    reasons: dict[str, list[str]] = {}
    got: dict[str, Any] = {}
    for fault in error.errors():
        name = str(fault["loc"][0])
        got[name] = fault["input"]
        text = fault["msg"].replace("Input should", "must").replace("String should", "must")
        if fault["type"] == "string_pattern_mismatch":
            text = {"name": "must be letters, digits, spaces and _.+- only", "device": "must be as --help says"}[name]
        reasons.setdefault(name, []).append(text)
    return [f"--{k.replace('_', '-')}: {' or '.join(v)}, got {got[k]!r}" for k, v in reasons.items()]


def _contradictions(config: TrainConfig) -> list[str]:
    """Faults that no single field shows, and paths that are not there: all of them in one go, before slow imports."""
    problems = []
    folders = folders_of(config)
    if config.base is None:
        problems.append("--base: name the model to train on ('builtin': the miniature, which knows only digits)")
    elif config.base != BUILTIN and not Path(config.base).exists():
        problems.append(f"--base: {config.base} does not exist")
    if config.data and (config.unlabeled or config.sensitive):
        problems.append("--data: names both folders already; leave out --unlabeled and --sensitive")
    for name, folder in folders.items():
        if folder and not folder.is_dir():
            problems.append(f"--{name}: no folder {folder}")
        elif folder is None and any(folders.values()) and (name, config.objective) != ("sensitive", "unsupervised"):
            problems.append(f"--{name}: name the folder of {name} images")
    if config.base not in (None, BUILTIN) and not any(folders.values()):
        problems.append("--unlabeled and --sensitive: name the two folders of images")
    if config.rate_images and config.base != BUILTIN:
        problems.append("--rate-images: only the built-in digits come with a classifier that can judge pictures")
    for path in (config.output_dir, config.output_dir / config.name):
        if path.exists() and not path.is_dir():
            problems.append(f"--output-dir: {path} is a file, not a folder")
        elif path.exists() and not os.access(path, os.W_OK):
            problems.append(f"--output-dir: {path} cannot be written to")
    return problems


def folders_of(config: TrainConfig) -> dict[str, Path | None]:
    """The two image folders, whichever way they were named; None where they were not."""
    if config.data:
        return {"unlabeled": config.data / "unlabeled", "sensitive": config.data / "sensitive"}
    return {"unlabeled": config.unlabeled, "sensitive": config.sensitive}


def to_toml(config: TrainConfig) -> str:
    """The settings as TOML that --config reads back; what is unset is left out, as TOML has no null."""
    values = {k: v for k, v in config.model_dump(mode="json").items() if v is not None}
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def schema() -> dict[str, Any]:
    """What the UIs make their widgets from: the exposed fields, with type, range, default and help."""
    full = TrainConfig.model_json_schema()["properties"]
    exposed = {
        name: full[name] for name, field in TrainConfig.model_fields.items() if field.json_schema_extra["exposed"]
    }
    return {"version": 1, "presets": list(PRESETS), "fields": exposed}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1, ensure_ascii=False))
