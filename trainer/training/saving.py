"""What a run saves: the LoRA with its metadata, that of before harm, and on request the model with the LoRA in it."""

import json
import math
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from torch import Tensor

from .. import __version__
from ..builtin import BUILTIN
from ..common.model_files import is_hub_id
from ..config.train_config import TrainConfig
from ..data.job import TrainingJob
from ..memory.memory_plan import DTYPES
from ..models import base_model, lora_file, merge
from ..reporting import verdict
from ..reporting.run_context import RunContext
from ..reporting.run_dir import RunDir
from .training_loop import TrainingLoop

SCHEDULE = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "rescale_betas_zero_snr", "trained_betas")
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


def result_path(job: TrainingJob, run_dir: RunDir) -> Path:
    """Return the path of the result: a file, or a folder for a whole model whose base is a diffusers folder."""
    is_folder = job.config.network == "full" and not job.base.is_file
    return run_dir.lora.with_name(f"{run_dir.name}-model") if is_folder else run_dir.lora


def save_result(
    job: TrainingJob,
    context: RunContext,
    loop: TrainingLoop,
    started: float,
    *,
    at_step: int | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Save what was trained: the LoRA of the last finished step; with --network full the whole model.

    Args:
        started: when this process began to train, in seconds since 1970.
        at_step: save the LoRA beside the result, under a name with this step.
        weights: the LoRA's at that step; None: as they are now.
    """
    if job.config.network == "full":
        change = merge.of_network(loop.learner.network.weights())
        _save_model(job, result_path(job, context.run_dir), change)
    else:
        name = context.run_dir.name if at_step is None else f"{context.run_dir.name}-{at_step:06d}"
        found = loop.learner.network.weights() if weights is None else weights
        step = loop.progress.step if at_step is None else at_step
        _save_lora(job, context.run_dir.lora.with_name(f"{name}.safetensors"), loop, found, step, started)


@dataclass
class HarmWatch:
    """Warns once when the loss on normal images has grown, and keeps the LoRA of the last checkpoint before."""

    good: tuple[int, dict[str, Tensor]] | None = None  # its step and weights
    has_warned: bool = False

    def look(
        self, job: TrainingJob, context: RunContext, loop: TrainingLoop, growth: dict[str, float], started: float
    ) -> None:
        config = job.config
        if self.has_warned or not context.ranks.is_first or config.objective == "unsupervised":
            return
        harm = verdict.about_harm(growth)
        if not harm:
            self.good = (loop.progress.step, loop.learner.network.weights()) if config.network == "lora" else None
            return
        self.has_warned = True
        kept = ""
        if self.good:
            step, weights = self.good
            save_result(job, context, loop, started, at_step=step, weights=weights)
            kept = f" The LoRA of step {step}, before that, is kept as {context.run_dir.name}-{step:06d}.safetensors."
        context.warn(f"step {loop.progress.step}: {harm}{kept}")


def _save_lora(
    job: TrainingJob, path: Path, loop: TrainingLoop, weights: dict[str, Tensor], step: int, started: float
) -> None:
    """Write a LoRA, with everything that is needed to make it again but the images."""
    config, base, folders = job.config, job.base, job.folders
    standard = lora_file.standard_metadata(
        name=path.stem,
        rank=config.rank,
        alpha=config.effective_alpha,
        resolution=config.resolution,
        base_name=_base_name(job),
        base_hash=base_model.part_hash(base, "unet"),
        finished=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        prediction_type=loop.denoiser.schedule.prediction_type,
        clip_skip=config.clip_skip,
    )
    captions = ([s.caption for s in kind] for kind in (folders.unlabeled, folders.sensitive))
    images = lora_file.dataset_metadata(*captions, started=started, shows_tags=config.metadata == "full")
    schedule = base_model.scheduler_config(base)
    own = {
        "ss_max_token_length": str(config.max_token_length),
        "ss_noise_offset": str(config.noise_offset),
        "ss_shuffle_caption": str(config.shuffle_caption),
        "ss_keep_tokens": str(config.keep_tokens),
        "ss_zero_terminal_snr": str(bool(schedule.get("rescale_betas_zero_snr"))),
        "pu_noise_schedule": json.dumps({name: schedule.get(name) for name in SCHEDULE}),
        "pu_config": json.dumps(_told_config(config), ensure_ascii=False),
        "pu_counts": json.dumps({k: len(getattr(folders, k)) for k in ("unlabeled", "sensitive", "held_out")}),
        "pu_prior": str(config.prior),
        "pu_steps": str(step),
        "pu_base_error": json.dumps(None if loop.scale.base_error is None else loop.scale.base_error.tolist()),
        "pu_risks": json.dumps(_finite(asdict(loop.last)) if loop.last and loop.last.step == step else None),
        "pu_versions": json.dumps({"pu-unlearn": __version__, **{name: version(name) for name in LIBRARIES}}),
    }
    if config.metadata == "full":
        own["pu_sensitive_captions"] = json.dumps(sorted({s.caption for s in folders.sensitive if s.caption}))
    tensors = lora_file.to_kohya(weights, alpha=config.effective_alpha, dtype=DTYPES[config.save_precision])
    lora_file.save(path, tensors, {**standard, **images, **own})


def save_merged(job: TrainingJob, context: RunContext, loop: TrainingLoop) -> None:
    """Save the base model with the LoRA merged in, where --save-merged asks for it."""
    config = job.config
    if config.save_merged == "no":
        return
    change = merge.of_lora(loop.learner.network.weights(), scale=config.effective_alpha / config.rank)
    suffix = ".safetensors" if config.save_merged == "checkpoint" else ""
    target = context.run_dir.lora.with_name(f"{context.run_dir.name}-merged{suffix}")
    _save_model(job, target, change)


def _save_model(job: TrainingJob, target: Path, change: merge.Change) -> None:
    """Save a checkpoint file if target is a .safetensors, else a diffusers folder."""
    if target.suffix == ".safetensors":
        merge.save_checkpoint(job.base, target, change)
    else:
        merge.save_folder(job.base, target, change, dtype=DTYPES[job.config.save_precision])


KEPT_TEXT = ("name", "device")  # the name is what the user called the file itself


def public_settings(config: TrainConfig) -> TrainConfig:
    """Return the settings as others may see them: with --metadata safe no path and no text that the user wrote.

    A base on the hub, which everybody can look up, keeps its id. What is hidden is as if it had not been given.
    """
    if config.metadata == "full":
        return config
    fields = TrainConfig.model_fields
    hidden = {name: fields[name].default for name, value in config if not _is_public(name, value)}
    if config.base == BUILTIN or (config.base and is_hub_id(config.base)):
        hidden.pop("base", None)
    return config.model_copy(update=hidden)


def _is_public(name: str, value: Any) -> bool:
    """Whether a setting's value is a number, or a word out of a fixed list. New settings are hidden until they are."""
    if value is None or isinstance(value, int | float) or name in KEPT_TEXT:
        return True
    annotation = TrainConfig.model_fields[name].annotation
    kinds = [annotation, *get_args(annotation)]
    return isinstance(value, str) and any(get_origin(k) is Literal and value in get_args(k) for k in kinds)


def _base_name(job: TrainingJob) -> str:
    """Return the base model's name for UIs; a local file's only with --metadata full: its hash tells which it is."""
    if job.config.base == BUILTIN:
        return "pu-unlearn miniature"
    shown = public_settings(job.config).base
    if not shown:
        return ""
    return job.base.path.name if job.config.base and Path(job.config.base).exists() else shown


def _told_config(config: TrainConfig) -> dict[str, Any]:
    """Return the settings for the metadata: never a path, at most a name."""
    values = public_settings(config).model_dump()
    public = {k: v.name if isinstance(v, Path) else v for k, v in values.items()}
    public["base"] = public["base"] and Path(public["base"]).name
    return public


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Replace nan by null, which JSON has."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
