"""What `python -m trainer evaluate` can be asked: read, checked all at once, before anything slow is imported."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..builtin import BUILTIN
from ..common.errors import UserError
from ..config.arguments import add_model_options, add_picture_options
from ..data.images import images_in

if TYPE_CHECKING:
    from ..config.train_config import TrainConfig


DIGITS = {  # of the built-in default
    "prompt": "a photo of a digit",
    "retain_prompts": [f"a photo of the digit {name}" for name in ("zero", "two", "four", "six", "eight")],
    "strengths": [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5],
}


@dataclass(frozen=True)
class Options:
    base: str
    vae: Path | None
    prediction_type: str
    lora: Path | None
    unlearned: str | None
    strength: float
    prompt: str
    n: int
    first_seed: int
    resolution: int
    steps: int
    guidance: float
    clip_skip: int
    device: str
    precision: str
    out: Path
    labeled: Path | None
    encoder: str | None
    judge: str | None
    sensitive_labels: list[str]
    clip: str | None
    normal_text: str | None
    sensitive_text: str | None
    normal: Path | None
    retain_prompts: list[str]
    paraphrases: list[str]
    strengths: list[float]
    sensitive: Path | None
    relearn: int
    relearn_lr: float
    invert: int
    events: bool
    follow_parent: bool

    def attack(self) -> "TrainConfig":
        """Settings of a relearning: a plain short training."""
        from ..config.train_config import TrainConfig

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
            device=self.device,
            precision=self.precision,
            prediction_type=self.prediction_type,
        )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer evaluate",
        description="Does it really unlearn? The same seeds before and after, judged and compared.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    add_picture_options(parser)
    add = parser.add_argument
    add("--unlearned", help="a whole model to compare with --base, instead of a LoRA")
    add("--prompt", help="what both are asked for [the digits' on builtin]")
    add("--n", type=int, default=500, help="pictures before and after [500]")
    add("--first-seed", type=int, default=0, help="seeds from here; choose others than those you tuned on [0]")
    add("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of the U-Net [auto]")
    add("--out", type=Path, help="folder of results [NAME-evaluate, beside the run that made the LoRA or in output]")
    judge = parser.add_argument_group("who judges (on builtin: the built-in classifier)")
    add = judge.add_argument
    add(
        "--labeled",
        type=Path,
        metavar="DIR",
        help="your images in DIR/normal and DIR/sensitive: a classifier is trained on",
    )
    add(
        "--encoder", help="a transformers image encoder: its features, not the base model's, for --labeled and --normal"
    )
    add("--judge", help="a transformers image classifier (folder, hub id) or an .onnx file; --labeled then measures it")
    add("--sensitive-labels", default="", help="its labels (ONNX: numbers) that are sensitive, separated by |")
    add("--clip", help="a CLIP model (folder, hub id) for --normal-text and --sensitive-text")
    add("--normal-text", help="such as “a photo of a man”")
    add("--sensitive-text", help="such as “a photo of Jane Doe”")
    what = parser.add_argument_group("what else is looked at")
    add = what.add_argument
    add(
        "--normal", type=Path, metavar="DIR", help="real normal images, not trained on: quality is the distance to them"
    )
    add("--retain-prompts", help="prompts whose pictures should stay, separated by |")
    add("--paraphrases", default="", help="other words for the prompt, separated by |")
    add("--strengths", help="of the LoRA, for a curve, such as 0,0.5,1,1.5")
    add("--sensitive", type=Path, metavar="DIR", help="sensitive images, for the two attacks")
    add("--relearn", type=int, default=0, metavar="STEPS", help="attack: train plainly on them")
    add("--relearn-lr", type=float, default=1e-4, help="[1e-4]")
    add("--invert", type=int, default=0, metavar="STEPS", help="attack: learn a word for them (textual inversion)")
    add("--events", choices=("jsonl",), help="one JSON line for each event on stdout")
    add("--follow-parent", action="store_true", help="end when standard input is closed")
    return parser


def read_options(argv: Sequence[str], *, lora_follows: bool = False) -> Options:
    """Args: lora_follows: the LoRA is yet to be trained. Raises: UserError listing every problem."""
    given = vars(make_parser().parse_args(argv))
    is_builtin = given["base"] == BUILTIN
    problems = _problems(given, is_builtin, has_lora=bool(given["lora"]) or lora_follows)
    for name in ("sensitive_labels", "retain_prompts", "paraphrases"):
        given[name] = list(dict.fromkeys(part.strip() for part in (given[name] or "").split("|") if part.strip()))
    if is_builtin:
        given |= {name: value for name, value in DIGITS.items() if not given[name]}
    try:
        given["strengths"] = _strengths(given["strengths"])
    except ValueError:
        problems.append(f"--strengths: must be numbers such as 0,0.5,1, got {given['strengths']!r}")
    if given["lora"] is None:
        given["strengths"] = []  # there is nothing to turn up or down
    if problems:
        raise UserError("\n".join(problems))
    given["out"] = given["out"] or _out(given)
    given["resolution"] = given["resolution"] or (64 if is_builtin else 512)
    given["guidance"] = (1.0 if is_builtin else 7.5) if given["guidance"] is None else given["guidance"]
    given["events"] = given["events"] is not None
    options = Options(**given)
    if options.relearn:
        _try_attack(options)
    return options


def _out(given: dict) -> Path:
    """Beside the run that made the LoRA, where `compare` looks for it; else below output/."""
    lora = given["lora"]
    name = lora.stem if lora else Path(given["unlearned"] or given["base"]).name
    is_beside_run = lora and (lora.with_suffix("") / "config.toml").is_file()
    return (lora.parent if is_beside_run else Path("output")) / f"{name}-evaluate"


def _try_attack(options: Options) -> None:
    """Raises: UserError if its training would refuse these settings, which it would do after all the pictures."""
    from pydantic import ValidationError

    from ..config.arguments import explain

    try:
        options.attack()
    except ValidationError as error:
        problems = [problem.replace("--lr:", "--relearn-lr:") for problem in explain(error)]
        raise UserError("\n".join(problems)) from None


def _strengths(value: str | list[float] | None) -> list[float]:
    if isinstance(value, str):
        return sorted({float(part) for part in value.split(",")})
    return value or []


def _problems(given: dict, is_builtin: bool, *, has_lora: bool) -> list[str]:
    problems = []
    for name in ("lora", "labeled", "normal", "sensitive"):
        path = given[name]
        if path and not (path.is_file() if name == "lora" else path.is_dir()):
            problems.append(f"--{name}: no {'file' if name == 'lora' else 'folder'} {path}")
        elif path and name in ("normal", "sensitive") and not images_in(path):
            problems.append(f"--{name}: no images in {path}")
    if given["lora"] and given["unlearned"]:
        problems.append("--lora and --unlearned: one of the two is compared with --base")
    if not given["prompt"] and not is_builtin:
        problems.append("--prompt: say what both models are asked for")
    if given["n"] < 2:
        problems.append(f"--n: must be 2 or more, got {given['n']}")
    if given["judge"] and given["clip"]:
        problems.append("--judge and --clip: one of them judges")
    if given["judge"] and not given["sensitive_labels"]:
        problems.append("--judge: say which of its labels are sensitive: --sensitive-labels")
    if bool(given["clip"]) != bool(given["normal_text"] and given["sensitive_text"]):
        problems.append("--clip, --normal-text and --sensitive-text go together")
    if given["encoder"] and not (given["labeled"] or given["normal"]):
        problems.append("--encoder: a classifier (--labeled) or a distance (--normal) is made of its features")
    for attack in ("relearn", "invert"):
        if given[attack] and not given["sensitive"]:
            problems.append(f"--{attack}: name the sensitive images: --sensitive")
        if given[attack] and (given["unlearned"] or not has_lora):
            problems.append(f"--{attack}: works with --lora only")
        if given[attack] < 0:
            problems.append(f"--{attack}: must be 0 or more, got {given[attack]}")
    return problems
