"""Every setting of a run, once: default, range, help. The command line, TOML files and schema.json come from here."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ..builtin import BUILTIN


def option(default: Any, text: str, *, exposed: bool = False, also: tuple[str, ...] = (), **limits: Any) -> Any:
    """Declare one setting. Args: exposed: becomes a widget (never a path or program). also: other spellings."""
    return Field(default, description=text, json_schema_extra={"exposed": exposed, "also": list(also)}, **limits)


@dataclass(frozen=True)
class Group:
    """Marks a field that begins a new group of options in --help."""

    title: str


Share = Annotated[float, Field(gt=0, lt=1)] | Literal["auto"]
Count = Annotated[int, Field(ge=1)] | Literal["auto"]
Count0 = Annotated[int, Field(ge=0)] | Literal["auto", "all"]
NAME_RULE = "must be letters, digits, spaces and _.+- only, and start with a letter, a digit or _"
NAME_BYTES = 100  # file systems allow 255, of which suffixes and temporary names take some
DEVICES = {"con", "nul", "aux", "prn", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


class TrainConfig(BaseModel):
    """The settings of one training run. Frozen; made by `arguments.parse`, saved as config.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)  # to_toml has no word for them

    base: Annotated[str | None, Group("what to learn from")] = option(
        None,
        "Stable Diffusion 1.x model: a .safetensors or .ckpt file, a diffusers folder, a hub id, or 'builtin'",
    )
    vae: Path | None = option(
        None, "another VAE than the model's own: a .safetensors, .ckpt or .pt file, or a diffusers folder"
    )
    prediction_type: Literal["auto", "epsilon", "v"] = option(
        "auto", "what the U-Net predicts; auto: what the model says, else the noise (epsilon)"
    )
    unlabeled: Path | None = option(
        None, "folder of unlabeled images: an unsorted mixture, some of them may be sensitive"
    )
    sensitive: Path | None = option(None, "folder of sensitive images: what must not come out")
    data: Path | None = option(None, "folder that holds both, as unlabeled/ and sensitive/")
    prompt: str | None = option(None, "caption of images without a .txt or .caption file beside them", exposed=True)
    sensitive_prompt: str | None = option(
        None, "caption that names what is sensitive; unlearned there too", exposed=True
    )
    resolution: int = option(
        512, "side of a square; no image is trained at more pixels than it has", ge=64, le=1024, multiple_of=8
    )
    bucket: bool = option(
        True, "keep the shapes of images, in steps of 64 px, without scaling up; otherwise squares", exposed=True
    )
    flip: bool = option(False, "mirror half of the images", exposed=True)
    crops: int = option(
        1, "versions of each image, cropped differently; more help where images are few", exposed=True, ge=1, le=64
    )
    caption_dropout: float = option(0.05, "share of samples trained on the empty caption", exposed=True, ge=0, lt=1)
    clip_skip: int = option(
        1, "the text encoder's layer to read, from the last: many anime models want 2", exposed=True, ge=1, le=12
    )
    exclude: Path | None = option(
        None, "text file naming unlabeled images to leave out, one a line; audit --exclude writes one"
    )
    skip_bad_images: bool = option(False, "skip images that cannot be read instead of refusing to start")
    recursive: bool = option(True, "read the images of sub-folders, too")
    folder_repeats: bool = option(
        True, "show the images of a sub-folder named like 10_name that many times as often as others (kohya's layout)"
    )
    caption_prefix: str | None = option(None, "text before every caption, --prompt's too", exposed=True)
    caption_suffix: str | None = option(None, "text after every caption, --prompt's too", exposed=True)
    shuffle_caption: bool = option(
        False,
        "show the comma-separated tags of a caption in eight orders; both kinds of image share them",
        exposed=True,
    )
    keep_tokens: int = option(0, "tags at the start of a caption that stay where they are", exposed=True, ge=0, le=100)
    max_token_length: int = option(
        75,
        "tokens of a caption that are read: 75, 150 or 225; what is beyond is cut off",
        exposed=True,
        ge=75,
        le=225,
        multiple_of=75,
    )
    noise_offset: float = option(
        0.0,
        "noise added to whole channels, so that very dark and bright pictures are learned",
        exposed=True,
        ge=0,
        le=1,
    )

    objective: Annotated[Literal["pu", "nnpu", "supervised", "unsupervised"], Group("the objective")] = option(
        "pu", "pu and nnpu unlearn from a mixture; supervised and unsupervised are baselines", exposed=True
    )
    prior: Share = option(
        "auto", "share of sensitive images hidden in the unlabeled ones; auto: estimated", exposed=True, also=("beta",)
    )
    temperature: float = option(1.5, "strength: larger unlearns harder, too large destroys", exposed=True, gt=0)
    temperature_mode: Literal["per-timestep", "fixed"] = option(
        "per-timestep",
        "temperature counts in the base model's own error at each timestep, or is a plain number",
        exposed=True,
    )
    sensitive_weight: Annotated[float, Field(gt=0)] | Literal["auto"] = option(
        "auto",
        "weight of the push away from sensitive images; auto: as strong at every prior and temperature (the paper's "
        "is the prior)",
    )
    min_snr_gamma: float | None = option(
        None,
        "timesteps whose signal-to-noise ratio is above this count less; 5 is usual, none: all count the same",
        exposed=True,
        gt=0,
    )
    calibration_samples: int = option(24, "samples for each of the 20 bins that measure the base model's error", ge=1)
    sensitive_prompt_share: float = option(
        0.25,
        "share of a step's samples, of both kinds, under the captions of sensitive images where these have any",
        exposed=True,
        ge=0,
        le=1,
    )
    keep_prompts: str | None = option(
        None,
        "prompts whose pictures must stay, separated by |: the base model makes 20 of each, learned as unlabeled",
        exposed=True,
    )

    steps: Annotated[int, Group("training")] = option(1000, "optimizer steps", exposed=True, ge=1)
    batch_unlabeled: int = option(16, "unlabeled samples in one step", exposed=True, ge=1)
    batch_sensitive: int = option(8, "sensitive samples in one step", exposed=True, ge=1)
    lr: float = option(1e-4, "learning rate", exposed=True, gt=0, le=1)
    warmup_steps: int = option(20, "steps over which the learning rate rises", ge=0)
    lr_scheduler: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = option(
        "cosine", "how the learning rate falls to 0 after the warm-up; constant: not at all", exposed=True
    )
    lr_scheduler_cycles: int = option(1, "falls of cosine_with_restarts", ge=1)
    lr_scheduler_power: float = option(1.0, "exponent of polynomial; 1 is linear", gt=0)
    max_grad_norm: float = option(1.0, "longer gradients are shortened to this", gt=0)
    weight_decay: float = option(0.01, "AdamW's pull of the LoRA towards zero", ge=0)
    network: Literal["lora", "full"] = option(
        "lora", "full: the whole U-Net learns and is saved as a model of its own, as in the paper; takes 12 GB and more"
    )
    rank: int = option(16, "LoRA rank", exposed=True, ge=1, le=256)
    alpha: float | None = option(None, "LoRA alpha; the rank if not given", gt=0)
    init_lora: Path | None = option(None, "LoRA file to continue from; needs the same --rank, its alpha may differ")
    optimizer: Literal["adamw", "adamw8bit", "lion", "prodigy"] = option(
        "adamw",
        "adamw8bit and lion need bitsandbytes; prodigy needs prodigyopt, and --lr 1: it scales that by itself",
        exposed=True,
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "number format of the U-Net's arithmetic")
    save_precision: Literal["fp16", "bf16", "fp32"] = option("fp16", "number format of the LoRA file")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    seed: int = option(0, "seed of everything random", exposed=True, ge=0, lt=2**32)

    vram_budget: Annotated[float | None, Group("memory: changes speed, not the result (fp8 weights: hardly)")] = option(
        None, "GiB of the GPU to use at most; all that is free if not given", gt=0
    )
    micro_batch: Count = option("auto", "samples in the U-Net at once")
    checkpointing: Count0 = option("auto", "parts of the U-Net that are computed again instead of kept; or 'all'")
    weights: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = option(
        "auto", "number format in which the frozen U-Net is kept"
    )
    offload: Count0 = option("auto", "blocks of the U-Net whose weights stay in CPU memory; or 'all'")
    attention: Literal["sdpa", "xformers"] = option("sdpa", "xformers is used only where it proves to work")

    name: Annotated[str, Group("results")] = option(
        "pu-lora",
        "name of the LoRA and of its run folder",
        exposed=True,
        pattern=r"^\w[\w .+-]*$",
        max_length=NAME_BYTES,
    )
    output_dir: Path = option(Path("output"), "where the LoRA and the run folder go")
    save_every: int = option(0, "steps between LoRA files NAME-000100.safetensors; 0: only the last", ge=0)
    save_state_every: int = option(0, "steps between states to resume from; 0: ten over the run", ge=0)
    keep_states: int = option(1, "how many of the newest states are kept", ge=1)
    keep_cache: bool = option(False, "keep the encoded images in the run folder")
    logging_dir: Path | None = option(None, "folder for TensorBoard; needs the package tensorboard")
    log_with: (
        Literal["tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab"] | None
    ) = option(
        None, "send each step's numbers to a tracker, too, whose package must be installed; some of them are on the web"
    )
    sidecars: bool = option(
        True, "write NAME.md, NAME.json and NAME.preview.png beside the LoRA: a model card, and what UIs show"
    )
    save_merged: Literal["no", "folder", "checkpoint"] = option(
        "no", "also save the model with the LoRA in it: as a diffusers folder, or as a file like --base's"
    )
    metadata: Literal["safe", "full"] = option(
        "safe", "full writes captions, prompts and names of files and folders into the LoRA and the report"
    )
    images: int = option(16, "pictures made before and after with the same seeds", ge=0, le=100)
    sample_every: int = option(0, "steps between pictures during training; 0: none", ge=0)
    sample_prompts: Path | None = option(
        None, "text file with a prompt a line for the pictures during training; kohya's --n --d --s --l are understood"
    )
    name_prompts: str | None = option(
        None,
        "prompts that name what is sensitive, separated by |: the report shows whether they still produce it; unless "
        "given, the captions that only sensitive images have",
    )
    sample_steps: int = option(25, "steps of the sampler that makes the pictures", ge=1, le=1000)
    guidance: float = option(7.5, "guidance scale of the pictures; 1: none", ge=1, le=30)
    rate_images: int = option(0, "pictures made before and after for the non-sensitive rate (built-in digits)", ge=0)

    @field_validator("*", mode="before")
    @classmethod
    def _unset(cls, value: Any, info: ValidationInfo) -> Any:
        """Read `none` (for a text: nothing) as unset, which takes back what --config sets."""
        kinds = get_args(cls.model_fields[str(info.field_name)].annotation)
        return None if NoneType in kinds and value == ("" if str in kinds else "none") else value

    @field_validator("prior", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        number = value.removesuffix("%").strip() if isinstance(value, str) and value.endswith("%") else ""
        return float(number) / 100 if number.replace(".", "", 1).isdecimal() else value

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, name: str) -> str:
        if name.endswith((".", " ")):
            raise ValueError("must not end in a dot or a space, which Windows drops")
        if name.partition(".")[0].rstrip().lower() in DEVICES:
            raise ValueError("must not be one that Windows keeps for a device")
        if (size := len(name.encode())) > NAME_BYTES:
            raise ValueError(f"must have at most {NAME_BYTES} bytes as UTF-8, this one has {size}")
        return name

    @property
    def effective_alpha(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha


_FITTED = {"micro_batch": "auto", "checkpointing": "auto", "weights": "auto", "offload": "auto"}
PRESETS = {
    "lowvram": {**_FITTED, "vram_budget": 2.4},
    "medvram": {**_FITTED, "vram_budget": 4.8},
    "highvram": {"micro_batch": "auto", "checkpointing": 0, "weights": "auto", "offload": 0},
}
# May differ between a run and its continuation: where it computes, how long and what it shows, not what it learns.
FREE_ON_RESUME = {
    "base",  # paths may: what lies there is compared
    "vae",
    "unlabeled",
    "sensitive",
    "data",
    "steps",  # the cosine schedule continues as if the run had always been this long
    "device",
    "vram_budget",
    "micro_batch",
    "checkpointing",
    "offload",
    "attention",
    "save_every",
    "save_state_every",
    "keep_states",
    "keep_cache",
    "images",
    "sample_every",
    "sample_prompts",
    "sidecars",
    "logging_dir",
    "log_with",
    "rate_images",
    "name",  # a run's folder may be renamed and moved
    "output_dir",
}


def folders_of(config: TrainConfig) -> dict[str, Path | None]:
    """Return the two image folders, from --data or their own options; None for one that was not given."""
    if config.data:
        return {"unlabeled": config.data / "unlabeled", "sensitive": config.data / "sensitive"}
    return {"unlabeled": config.unlabeled, "sensitive": config.sensitive}


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return the settings with paths that mean the same from every working directory, as a run saves them."""
    absolute: dict[str, Any] = {name: value.absolute() for name, value in config if isinstance(value, Path)}
    if config.base and config.base != BUILTIN and Path(config.base).exists():
        absolute["base"] = str(Path(config.base).absolute())
    return config.model_copy(update=absolute)


def to_toml(config: TrainConfig) -> str:
    """Write the settings as TOML that --config reads back; unset ones are left out, as TOML has no null."""
    values = {k: v for k, v in config.model_dump(mode="json").items() if v is not None}
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def schema() -> dict[str, Any]:
    """Return the exposed settings with type, range, default and help: the UIs make their widgets from them."""
    full = TrainConfig.model_json_schema()["properties"]
    exposed = {name: field for name, field in full.items() if field["exposed"]}
    return {"version": 1, "presets": list(PRESETS), "fields": exposed}
