"""Checks across settings: contradictions, changes of a resumed run, paths that do not exist."""

import os
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from ..builtin import BUILTIN
from ..common.model_files import is_hub_id
from .sample_prompts import read_sample_prompts
from .train_config import FREE_ON_RESUME, TrainConfig, folders_of


def contradictions(config: TrainConfig, *, needs_images: bool) -> list[str]:
    """Describe each contradiction in one sentence. Args: needs_images: whether image folders are required."""
    problems = []
    folders = folders_of(config)
    if config.base is None:
        problems.append("--base: name the model to train on ('builtin': the miniature, which knows only digits)")
    else:
        problems += not_there(config.base, config.vae)
    if config.init_lora and not config.init_lora.is_file():
        problems.append(f"--init-lora: no file {config.init_lora}")
    if config.save_merged == "checkpoint" and not (config.base and Path(config.base).suffix == ".safetensors"):
        problems.append("--save-merged checkpoint: needs a .safetensors file as --base; 'folder' works with any")
    if config.network == "full":
        problems += _of_whole_networks(config)
    problems += _of_trackers(config)
    if config.sample_prompts:
        problems += read_sample_prompts(config.sample_prompts)[1]
        if not config.sample_every:
            problems.append("--sample-prompts: pictures during training are off; --sample-every 100 makes some")
    if config.logging_dir and find_spec("tensorboard") is None:
        problems.append("--logging-dir: needs a package. Install it: pip install tensorboard")
    if config.data and (config.unlabeled or config.sensitive):
        problems.append("--data: names both folders already; leave out --unlabeled and --sensitive")
    for name, folder in folders.items():
        if folder and not folder.is_dir():
            problems.append(f"--{name}: no folder {folder}")
        elif folder is None and any(folders.values()) and (name, config.objective) != ("sensitive", "unsupervised"):
            problems.append(f"--{name}: name the folder of {name} images")
    if needs_images and config.base not in (None, BUILTIN) and not any(folders.values()):
        problems.append("--unlabeled and --sensitive: name the two folders of images")
    if config.rate_images and config.base != BUILTIN:
        problems.append("--rate-images: only the built-in digits come with a classifier that can judge pictures")
    if config.keep_prompts is not None and not config.keep_prompts.strip(" |"):
        problems.append("--keep-prompts: names no prompt")
    has_own = config.sensitive_prompt and config.sensitive_prompt_share > 0
    if has_own and min(config.batch_unlabeled, config.batch_sensitive) < 2:
        problems.append(
            "--sensitive-prompt: needs 2 samples of each kind in a step (--batch-unlabeled, --batch-sensitive)"
        )
    return problems + no_output_folder("--output-dir", config.output_dir / config.name)


def _of_trackers(config: TrainConfig) -> list[str]:
    """Explain why a tracker cannot be used."""
    if config.log_with is None:
        return []
    if config.log_with == "tensorboard" and not config.logging_dir:
        return ["--log-with tensorboard: name the folder for it, --logging-dir DIR"]
    if find_spec(config.log_with) is None:
        return [f"--log-with {config.log_with}: needs a package. Install it: pip install {config.log_with}"]
    return []


def differences(before: TrainConfig, now: TrainConfig, said: Collection[str], *, steps_done: int) -> list[str]:
    """List the settings that a resumed run may not change. Args: said: the settings given on the command line."""
    problems = []
    for name in said:
        was, new = getattr(before, name), getattr(now, name)
        is_settled = (name, new) == ("prior", "auto")  # the first call has estimated and saved it
        if was != new and name not in FREE_ON_RESUME and not is_settled:
            problems.append(f"--{name.replace('_', '-')}: this run was started with {was}, not {new}; leave it out")
    if now.steps < steps_done:
        problems.append(f"--steps: this run has done {steps_done} already, more than {now.steps}")
    return problems


def _of_whole_networks(config: TrainConfig) -> list[str]:
    """List LoRA-only settings that contradict --network full."""
    values = {
        "save_every": (0,),
        "weights": ("auto", "fp32"),
        "offload": ("auto", 0),
        "init_lora": (None,),
        "save_merged": ("no",),
    }
    found = [name for name, allowed in values.items() if getattr(config, name) not in allowed]
    problems = [f"--{name.replace('_', '-')}: belongs to a LoRA, not to --network full" for name in found]
    if config.base and Path(config.base).suffix == ".ckpt":
        problems.append("--network full: writes a file like --base; give a .safetensors file or a diffusers folder")
    return problems


def not_there(base: str, vae: Path | None) -> list[str]:
    """List model paths that neither exist nor can be hub ids."""
    problems = []
    if base != BUILTIN and not Path(base).exists() and not is_hub_id(base):
        problems.append(f"--base: {base} does not exist")
    if vae and not vae.exists():
        problems.append(f"--vae: {vae} does not exist")
    return problems


def no_output_folder(option: str, *paths: Path) -> list[str]:
    """Explain why output folders cannot be written to, each reason once."""
    there = {next(place for place in (path, *path.absolute().parents) if place.exists()) for path in paths}
    files = [f"{option}: {place} is a file, not a folder" for place in there if not place.is_dir()]
    return files + [f"{option}: {place} cannot be written to" for place in there if not os.access(place, os.W_OK)]
