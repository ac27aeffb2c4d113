"""The settings of `make-data`, and the images that follow from them: names, prompts and seeds. Loads no model."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..builtin import BUILTIN, CONFIG
from ..common.random_streams import NAMES, rng
from ..config import arguments
from ..config.parser import (
    DEVICE,
    Parser,
    ProgramOptions,
    add_fields,
    command_parser,
    read_argv,
    refuse,
    taken,
    validated,
)
from ..config.train_config import Count, option
from ..config.validation import no_output_folder, not_there

OPTION_NAMES = {"normal": "unlabeled", "hidden": "contaminate", "sensitive": "sensitive"}  # by kind of image
KINDS = tuple(OPTION_NAMES)
MAX_PER_KIND = 50_000  # images
SEEDS = 10_000
FIRST_SEED = 2**31 + 2**20  # above the seeds that people choose, and those of the prior preservation images
# Defaults on the built-in model, which knows only digits and needs less guidance.
BUILTIN_DEFAULTS = {
    "unlabeled_prompt": "a photo of the digit four",
    "contaminate_prompt": "a photo of the digit three",
    "resolution": 64,
    "guidance": 3.0,
}


class Recipe(BaseModel):
    """The settings of a data set: which images to make, and how. Frozen; made by `parse`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = option(
        BUILTIN, "Stable Diffusion 1.x model: a .safetensors or .ckpt file, a diffusers folder, a hub id, or 'builtin'"
    )
    vae: Path | None = option(
        None, "another VAE than the model's own: a .safetensors, .ckpt or .pt file, or a diffusers folder"
    )
    prediction_type: Literal["auto", "epsilon", "v"] = option(
        "auto", "what the U-Net predicts; auto: as the model's files state, otherwise the noise (epsilon)"
    )
    out: Path = option(Path("output/made-data"), "folder to write: unlabeled/, sensitive/, manifest.jsonl, report.html")
    unlabeled_prompt: str | None = option(None, 'prompt of the normal images [on the built-in model: "… digit four"]')
    n_unlabeled: int = option(
        64, "number of normal images; those of --n-contaminate are added to the same folder", ge=1, le=MAX_PER_KIND
    )
    contaminate_prompt: str | None = option(
        None, 'prompt of the sensitive images hidden among the unlabeled ones [on the built-in model: "… digit three"]'
    )
    n_contaminate: int = option(
        16,
        "number of sensitive images hidden among the unlabeled; prior: n_contaminate / (n_unlabeled + n_contaminate)",
        ge=0,
        le=MAX_PER_KIND,
    )
    sensitive_prompt: str | None = option(None, "prompt of the sensitive images [that of --contaminate-prompt]")
    n_sensitive: int = option(
        20, "number of sensitive images; a training holds out a tenth, at least 2", ge=3, le=MAX_PER_KIND
    )
    sensitive_captions: bool = option(
        False,
        "write the prompt to a .txt beside each sensitive image, so that it is unlearned under this prompt, too",
    )
    negative_prompt: str | None = option(None, "prompt that guidance leads away from, in images of every kind")
    resolution: int = option(
        512, "side of an image in pixels [512; 64 for the built-in model]", ge=64, le=1024, multiple_of=8
    )
    steps: int = option(25, "steps of the sampler", ge=1, le=1000)
    guidance: float = option(7.5, "guidance scale; 1: none [7.5; 3 for the built-in model]", ge=1, le=30)
    sampler: Literal["ddim", "pndm", "dpm++", "euler_a"] = option("ddim", "sampler of diffusers")
    clip_skip: int = option(1, "layer of the text encoder to read, counted from the last", ge=1, le=12)
    seed: int = option(0, "seed of all images; two different seeds have no image in common", ge=0, lt=SEEDS)
    micro_batch: Count = option("auto", "images in the U-Net at once; halved whenever memory runs out")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "number format of the U-Net's arithmetic")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", pattern=DEVICE)

    @property
    def prior(self) -> float:
        """The share of sensitive images in the unlabeled folder."""
        return self.n_contaminate / (self.n_unlabeled + self.n_contaminate)

    def count(self, kind: str) -> int:
        """Return the number of images of a kind."""
        return {"normal": self.n_unlabeled, "hidden": self.n_contaminate, "sensitive": self.n_sensitive}[kind]

    def prompt(self, kind: str) -> str | None:
        """Return the prompt of a kind of image; None if no option gives one."""
        if kind == "normal":
            return self.unlabeled_prompt
        return self.contaminate_prompt if kind == "hidden" else self.sensitive_prompt or self.contaminate_prompt


@dataclass(frozen=True)
class ImageSpec:
    """One image to make. Depends on seed, kind and index only, so a larger data set has all images of a smaller."""

    file: str  # relative to the data set's folder, with /
    kind: str  # of KINDS
    index: int  # within its kind
    prompt: str
    seed: int  # of its noise; below 2**32, as torch's generator ignores higher bits


def image_spec(recipe: Recipe, kind: str, index: int) -> ImageSpec:
    """Return one image of a kind. Args: index: from 0 to MAX_PER_KIND - 1; may exceed the number that is made."""
    first = FIRST_SEED + (recipe.seed * len(KINDS) + KINDS.index(kind)) * MAX_PER_KIND
    return ImageSpec(_file(recipe.seed, kind, index), kind, index, recipe.prompt(kind) or "", first + index)


def image_specs(recipe: Recipe) -> list[ImageSpec]:
    """Return all images of the data set, kind by kind."""
    return [image_spec(recipe, kind, i) for kind in KINDS for i in range(recipe.count(kind))]


def _file(seed: int, kind: str, index: int) -> str:
    if kind == "sensitive":
        return f"sensitive/{index:05d}.png"
    return f"unlabeled/{_numbers(seed)[MAX_PER_KIND * KINDS.index(kind) + index]:05d}.png"


@functools.lru_cache(maxsize=4)
def _numbers(seed: int) -> np.ndarray:
    """Return the numbers in the names of all possible unlabeled images, normal ones first, in random order.

    So a name does not show whether its image is sensitive.
    """
    return rng(seed, NAMES).permutation(2 * MAX_PER_KIND)


@dataclass(frozen=True)
class Invocation:
    """A parsed command line: the data set, and how the command runs."""

    recipe: Recipe
    events: bool
    follow_parent: bool


def make_parser() -> Parser:
    """Return the parser of `make-data`."""
    parser = command_parser(
        "make-data",
        ProgramOptions,
        "Make the two image folders of a training with the base model itself: normal images, sensitive images "
        "hidden among them, and sensitive examples. The same command continues an interrupted run; with larger "
        "numbers it adds images.",
    )
    add_fields(parser, Recipe)
    return parser


def parse(argv: Sequence[str]) -> Invocation:
    """Read a command line. Raises: UserError listing every problem at once."""
    problems: list[str] = []
    given = read_argv(argv, make_parser(), problems)
    options = taken(ProgramOptions, given, problems)
    defaults = BUILTIN_DEFAULTS if given.get("base", BUILTIN) == BUILTIN else {}
    recipe = validated(Recipe, {**defaults, **given}, problems)
    refuse(problems + _contradictions(recipe))
    return Invocation(recipe, options.events, options.follow_parent)


def _contradictions(recipe: Recipe) -> list[str]:
    """Describe each contradiction between the settings in one sentence."""
    problems = not_there(recipe.base, recipe.vae)
    for kind, name in OPTION_NAMES.items():
        has_prompt = bool((recipe.prompt(kind) or "").strip())
        if recipe.count(kind) and not has_prompt and not (kind == "sensitive" and recipe.n_contaminate):
            problems.append(f'--{name}-prompt: say what the {kind} images show, such as "a photo of a man"')
    if recipe.negative_prompt and recipe.guidance == 1:
        problems.append("--negative-prompt: does nothing without guidance; raise --guidance above 1")
    return problems + no_output_folder("--out", recipe.out / "unlabeled", recipe.out / "sensitive")


def training_command(recipe: Recipe) -> list[str]:
    """Return the command line that trains on the data set, as words."""
    settings: dict[str, Any] = {
        "base": recipe.base,
        "vae": recipe.vae,
        "data": recipe.out,
        "prompt": recipe.unlabeled_prompt,
    }
    settings |= {"prior": f"{recipe.prior:.4g}" if recipe.prior else None, "resolution": recipe.resolution}
    if recipe.prediction_type != "auto":
        settings["prediction_type"] = recipe.prediction_type
    if recipe.clip_skip > 1:
        settings["clip_skip"] = recipe.clip_skip
    if recipe.base == BUILTIN:  # the miniature needs other settings than Stable Diffusion
        builtin = arguments.parse([], CONFIG).config
        settings |= {name: getattr(builtin, name) for name in ("steps", "lr", "temperature", "min_snr_gamma")}
        settings["guidance"] = recipe.guidance
    options = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items() if value is not None]
    return ["python", "-m", "trainer", *(word for pair in options for word in pair)]
