"""What `python -m trainer evaluate` can be asked: read and checked all at once, before anything slow is imported."""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError, model_validator

from ..builtin import BUILTIN, digits
from ..common.errors import UserError
from ..config.parser import (
    Directory,
    Group,
    ProgramOptions,
    Takes,
    Texts,
    command_parser,
    explain,
    read_settings,
)
from ..config.picture_options import PictureOptions
from ..config.train_config import TrainConfig, option
from ..data.images import images_in
from ..reporting.run_dir import RunDir

DIGITS = {  # on the built-in model
    "prompt": digits.PROMPT,
    "retain_prompts": [f"a photo of the digit {name}" for name in ("zero", "two", "four", "six", "eight")],
    "strengths": [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5],
}


def _numbers(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return sorted({float(part) for part in value.split(",")})
    except ValueError:
        raise ValueError("must be numbers such as 0,0.5,1") from None


class Options(PictureOptions, ProgramOptions):
    """Which pictures are made, what judges them, and what else is measured."""

    unlearned: str | None = option(None, "a whole model to compare with --base, instead of a LoRA")
    prompt: str = option("", "prompt of the pictures before and after [the digits' on the built-in model]")
    n: int = option(500, "number of pictures before, and as many after")
    first_seed: int = option(0, "seeds count up from this one; choose others than those you tuned settings on")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "number format of the U-Net's arithmetic")
    out: Path = option(
        Path("output"), "folder of results [NAME-evaluate, beside the run that made the LoRA, otherwise in output]"
    )

    labeled: Annotated[Directory, Group("the judge (on the built-in model: the built-in classifier)")] = option(
        None, "your images in DIR/normal and DIR/sensitive: a classifier is trained on them"
    )
    encoder: str | None = option(
        None,
        "an image encoder of transformers: --labeled and --normal use its features instead of the base model's",
    )
    judge: str | None = option(
        None, "an image classifier of transformers (folder, hub id) or an .onnx file; --labeled then measures it"
    )
    sensitive_labels: Texts = option([], "its labels (ONNX: numbers) that are sensitive, separated by |")
    clip: str | None = option(None, "a CLIP model (folder, hub id) for --normal-text and --sensitive-text")
    normal_text: str | None = option(None, "description of a normal picture, such as “a photo of a man”")
    sensitive_text: str | None = option(None, "description of a sensitive picture, such as “a photo of Jane Doe”")

    normal: Annotated[Directory, Group("further measurements")] = option(
        None, "real normal images, not trained on: quality is the distance to them"
    )
    retain_prompts: Texts = option([], "prompts whose pictures should stay, separated by |")
    paraphrases: Texts = option([], "other words for the prompt, separated by |")
    name_prompts: Texts = option(
        [],
        "prompts that name what is sensitive, separated by |: do they still produce it? [those that the run tried "
        "whose folder lies beside the LoRA]",
    )
    strengths: Annotated[list[float], Takes("X,X"), BeforeValidator(_numbers)] = option(
        [], "strengths of the LoRA for a curve, such as 0,0.5,1,1.5"
    )
    sensitive: Directory = option(None, "sensitive images, for the two attacks")
    relearn: Annotated[int, Takes("STEPS")] = option(0, "attack: train on the sensitive images without unlearning [0]")
    relearn_lr: float = option(1e-4, "learning rate of that attack")
    invert: Annotated[int, Takes("STEPS")] = option(
        0, "attack: learn a word for the sensitive images (textual inversion) [0]"
    )

    @model_validator(mode="before")
    @classmethod
    def _digits(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Fill in what is not given, or empty, on the built-in model."""
        if given.get("base", BUILTIN) != BUILTIN:
            return given
        return {**DIGITS, **{name: value for name, value in given.items() if value or name not in DIGITS}}

    def attack(self) -> TrainConfig:
        """Return the settings of a relearning: a short training with the plain loss."""
        return TrainConfig(
            base=self.base,
            vae=self.vae,
            steps=self.relearn,
            lr=self.relearn_lr,
            batch_unlabeled=8,
            warmup_steps=0,
            resolution=self.resolution,
            sample_steps=self.steps,
            guidance=self.guidance,
            clip_skip=self.clip_skip,
            max_token_length=self.max_token_length,
            device=self.device,
            precision=self.precision,
            prediction_type=self.prediction_type,
        )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `evaluate`."""
    return command_parser(
        "evaluate", Options, "Does it really unlearn? The same seeds before and after, judged and compared."
    )


def read_options(argv: Sequence[str], *, lora_follows: bool = False) -> Options:
    """Return the settings of an evaluation.

    Args: lora_follows: the LoRA is yet to be trained.
    Raises: UserError listing every problem.
    """
    check = partial(_problems, lora_follows=lora_follows)
    options = read_settings(argv, make_parser(), Options, check)
    strengths = options.strengths if options.lora else []  # without a LoRA, there is no strength to change
    out = options.out if "out" in options.model_fields_set else _out(options)
    names = options.name_prompts if "name_prompts" in options.model_fields_set else _names_to_try(options)
    options = options.model_copy(update={"out": out, "strengths": strengths, "name_prompts": names})
    if options.relearn:
        _try_attack(options)
    return options


def _out(options: Options) -> Path:
    """Return the folder beside the run that made the LoRA, where `compare` looks for it, or else one below output/."""
    lora = options.lora
    name = lora.stem if lora else Path(options.unlearned or options.base).name
    is_beside_run = lora and (lora.with_suffix("") / "config.toml").is_file()
    return (lora.parent if lora and is_beside_run else Path("output")) / f"{name}-evaluate"


def _names_to_try(options: Options) -> list[str]:
    """Return the prompts that the run tried whose folder lies beside the LoRA, else those for the built-in model."""
    if options.lora:
        name = re.sub(r"-\d{6}$", "", options.lora.stem)  # of a LoRA that was saved on the way
        for event in reversed(RunDir(options.lora.parent, name).events()):
            if event["event"] == "name_prompts":
                return list(event["prompts"])
    return [name.strip() for name in digits.NAME_PROMPTS.split("|")] if options.base == BUILTIN else []


def _try_attack(options: Options) -> None:
    """Raises: UserError if the relearning would refuse these settings: it runs only after all pictures are made."""
    try:
        options.attack()
    except ValidationError as error:
        problems = [problem.replace("--lr:", "--relearn-lr:") for problem in explain(error)]
        raise UserError("\n".join(problems)) from None


def _problems(options: Options, *, lora_follows: bool) -> list[str]:
    """Return one sentence for each missing file and each contradiction."""
    problems = []
    if options.lora and not options.lora.is_file():
        problems.append(f"--lora: no file {options.lora}")
    if not (options.lora or options.unlearned or lora_follows):
        problems.append("--lora: name the LoRA to evaluate, or a whole model: --unlearned")
    if options.lora and options.unlearned:
        problems.append("--lora and --unlearned: one of the two is compared with --base")
    if not options.prompt:
        problems.append("--prompt: say what both models are asked for")
    if options.n < 2:
        problems.append(f"--n: must be 2 or more, got {options.n}")
    return [
        *problems,
        *_problems_with_folders(options),
        *_problems_with_the_judge(options),
        *_problems_with_attacks(options, has_lora=bool(options.lora) or lora_follows),
    ]


def _problems_with_folders(options: Options) -> list[str]:
    problems = []
    for name, path in (("labeled", options.labeled), ("normal", options.normal), ("sensitive", options.sensitive)):
        if path and not path.is_dir():
            problems.append(f"--{name}: no folder {path}")
        elif path and name != "labeled" and not images_in(path):
            problems.append(f"--{name}: no images in {path}")
    return problems


def _problems_with_the_judge(options: Options) -> list[str]:
    problems = []
    if options.judge and options.clip:
        problems.append("--judge and --clip: one of them judges")
    if options.judge and not options.sensitive_labels:
        problems.append("--judge: say which of its labels are sensitive: --sensitive-labels")
    if bool(options.clip) != bool(options.normal_text and options.sensitive_text):
        problems.append("--clip, --normal-text and --sensitive-text go together")
    if options.encoder and not (options.labeled or options.normal):
        problems.append("--encoder: a classifier (--labeled) or a distance (--normal) is made of its features")
    return problems


def _problems_with_attacks(options: Options, *, has_lora: bool) -> list[str]:
    problems = []
    for name, steps in (("relearn", options.relearn), ("invert", options.invert)):
        if steps and not options.sensitive:
            problems.append(f"--{name}: name the sensitive images: --sensitive")
        if steps and (options.unlearned or not has_lora):
            problems.append(f"--{name}: works with --lora only")
        if steps < 0:
            problems.append(f"--{name}: must be 0 or more, got {steps}")
    return problems
