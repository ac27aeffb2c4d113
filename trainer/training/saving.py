"""What a run saves: the LoRA with its metadata, and on request the model with the LoRA merged in."""

import json
import math
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..builtin import BUILTIN
from ..config.train_config import TrainConfig
from ..data.folders import Folders
from ..data.job import TrainingJob
from ..memory.memory_plan import DTYPES
from ..models import base_model, lora_file, merge
from ..reporting.run_context import RunContext
from ..reporting.run_dir import RunDir
from .training_loop import TrainingLoop

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


def result_path(job: TrainingJob, run_dir: RunDir) -> Path:
    """Return the path of the result: a file, or a folder for a whole model whose base is a diffusers folder."""
    is_folder = job.config.network == "full" and not job.base.is_file
    return run_dir.lora.with_name(f"{run_dir.name}-model") if is_folder else run_dir.lora


def save_result(
    job: TrainingJob, context: RunContext, loop: TrainingLoop, started: float, *, at_step: int | None = None
) -> None:
    """Save what was trained: the LoRA of the last finished step; with --network full the whole model.

    Args:
        started: when this process began to train, in seconds since 1970.
        at_step: save the LoRA beside the result, under a name with this step.
    """
    if job.config.network == "full":
        change = merge.of_network(loop.learner.network.weights())
        _save_model(job, result_path(job, context.run_dir), change)
    else:
        name = context.run_dir.name if at_step is None else f"{context.run_dir.name}-{at_step:06d}"
        _save_lora(job, context.run_dir.lora.with_name(f"{name}.safetensors"), loop, started)


def _save_lora(job: TrainingJob, path: Path, loop: TrainingLoop, started: float) -> None:
    """Write the LoRA of the last finished step, with everything that is needed to make it again but the images."""
    config, base, folders = job.config, job.base, job.folders
    standard = lora_file.standard_metadata(
        name=path.stem,
        rank=config.rank,
        alpha=config.effective_alpha,
        resolution=config.resolution,
        base_name="pu-unlearn miniature" if config.base == BUILTIN else base.path.name,
        base_hash=base_model.part_hash(base, "unet"),
        finished=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        prediction_type=loop.denoiser.schedule.prediction_type,
        clip_skip=config.clip_skip,
    )
    captions = ([s.caption for s in kind] for kind in (folders.unlabeled, folders.sensitive))
    images = lora_file.dataset_metadata(*captions, started=started, show_sensitive=config.metadata == "full")
    own = {
        "ss_max_token_length": str(config.max_token_length),
        "ss_noise_offset": str(config.noise_offset),
        "ss_shuffle_caption": str(config.shuffle_caption),
        "ss_keep_tokens": str(config.keep_tokens),
        "pu_config": json.dumps(_public_config(config), ensure_ascii=False),
        "pu_sensitive_captions": _public_captions(config, folders),
        "pu_counts": json.dumps({k: len(getattr(folders, k)) for k in ("unlabeled", "sensitive", "held_out")}),
        "pu_prior": str(config.prior),
        "pu_steps": str(loop.progress.step),
        "pu_base_error": json.dumps(None if loop.scale.base_error is None else loop.scale.base_error.tolist()),
        "pu_risks": json.dumps(_finite(asdict(loop.last)) if loop.last else None),
        "pu_versions": json.dumps({"pu-unlearn": __version__, **{name: version(name) for name in LIBRARIES}}),
    }
    tensors = lora_file.to_kohya(
        loop.learner.network.weights(), alpha=config.effective_alpha, dtype=DTYPES[config.save_precision]
    )
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


def _public_config(config: TrainConfig) -> dict[str, Any]:
    """Return the settings without anything about the user's disk or the sensitive images."""
    values = config.model_dump()
    public = {k: v.name if isinstance(v, Path) else v for k, v in values.items()}
    public["base"] = Path(config.base or "").name
    if config.metadata == "safe" and config.sensitive_prompt:
        public["sensitive_prompt"] = lora_file.hashed(config.sensitive_prompt)
    return public


def _public_captions(config: TrainConfig, folders: Folders) -> str:
    captions = sorted({s.caption for s in folders.sensitive if s.caption})
    return json.dumps(captions if config.metadata == "full" else [lora_file.hashed(c) for c in captions])


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Replace nan by null, which JSON has."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
