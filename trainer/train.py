"""One run: phase 1 (encode), phase 2 (train the LoRA), and what is saved of it when."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import __version__, lora, lora_file, memory, merge, model, plan
from .builtin import BUILTIN
from .config import TrainConfig
from .dataset import Folders
from .draws import views
from .encode import encode
from .errors import NonFinite, Stopped
from .keep import kept_samples
from .loop import Loop, StepReport
from .model import Base
from .ranks import ONE, Ranks
from .run_dir import RunDir
from .switches import DTYPES, Switches

CHECKPOINTS = 10  # states and probes over a run
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")

Emit = Callable[..., None]  # emit(event, **fields)


@dataclass(frozen=True)
class Trained:
    """What pictures and report need after training."""

    unet: nn.Module  # with its LoRA
    device: torch.device
    base: Base
    folders: Folders
    rises: dict[str, float]  # see Loop.rises


def picture_prompt(config: TrainConfig, folders: Folders) -> str:
    """What pictures are made with: --prompt, or the first caption where every image has its own."""
    return config.prompt or folders.unlabeled[0].caption


def run(
    config: TrainConfig,
    base: Base,
    folders: Folders,
    run_dir: RunDir,
    *,
    ranks: Ranks = ONE,
    is_resume: bool,
    emit: Emit,
    check: Callable[[], None],
    picture: Callable[[Trained, int], None],
) -> Trained:
    """Train and save the LoRA.

    Args:
        ranks: processes that train this LoRA together; only the first one writes.
        check: raises Stopped when the user asked for it; called before each pass through a model.
        picture: makes the pictures during training (--sample-every) from (what is trained so far, step).
    Raises: Stopped or NonFinite after saving LoRA and state of the last finished step; UserError.
    """
    started = time.time()
    device = memory.choose_device(config.device, is_alone=ranks.world == 1)
    switches = _choose_switches(config, base, device, emit)
    if config.keep_prompts:
        emit("phase", name="keep")
        make = partial(kept_samples, config, base, run_dir.keep, switches, device=device, check=check)
        if ranks.is_first:
            make()
        ranks.wait()
        folders = replace(folders, unlabeled=[*folders.unlabeled, *make()])
    loop = _load(config, base, folders, run_dir, ranks, device, switches, emit, check)
    if is_resume:
        loop.restore(run_dir.load_state())
        if ranks.is_first:
            run_dir.truncate_events(loop.progress.step)
    emit("phase", name="calibrate")
    loop.prepare()
    emit("phase", name="train", device=str(loop.device), **{**asdict(loop.switches), "micro_batch": loop.micro_batch})
    report, rises = None, {}
    try:
        for report in loop.steps():
            emit("step", **asdict(report))
            every = config.save_state_every or max(1, config.steps // CHECKPOINTS)
            if report.step % every == 0 or report.step == config.steps:
                rises = _checkpoint(loop, run_dir, ranks, emit)
            if (
                ranks.is_first
                and config.sample_every
                and report.step % config.sample_every == 0
                and report.step < config.steps
            ):
                _try_picture(picture, Trained(loop.learner.unet, loop.device, base, folders, rises), report.step, emit)
    except (Stopped, NonFinite):
        if loop.progress.step and ranks.is_first:
            run_dir.save_state(loop.progress.step, loop.state(), keep=config.keep_states)
            save_lora(config, base, folders, run_dir, loop, report, started)
        raise
    if ranks.is_first:
        save_lora(config, base, folders, run_dir, loop, report, started)
        _save_merged(config, base, run_dir, lora.weights(loop.learner.unet))
        if not config.keep_cache:
            run_dir.remove_cache()
    return Trained(loop.learner.unet, loop.device, base, folders, rises or loop.rises())


def _load(
    config: TrainConfig,
    base: Base,
    folders: Folders,
    run_dir: RunDir,
    ranks: Ranks,
    device: torch.device,
    switches: Switches,
    emit: Emit,
    check: Callable[[], None],
) -> Loop:
    def progress(what: str, done: int, of: int) -> None:
        check()
        emit("phase", name="encode", what=what, done=done, total=of)

    samples = [*folders.unlabeled, *folders.sensitive, *folders.held_out]
    encoded = encode(
        samples,
        {"", *(s.caption for s in samples if s.caption)},
        base=base,
        resolution=config.resolution,
        bucket=config.bucket,
        views=views(flip=config.flip, crops=config.crops),
        folder=run_dir.cache,
        clip_skip=config.clip_skip,
        device=device,
        ranks=ranks,
        progress=progress,
    )
    emit("phase", name="load")
    warn = lambda text: emit("warning", message=text)  # noqa: E731
    return Loop(config, base, folders, encoded, switches, device=device, ranks=ranks, warn=warn, check=check)


def _choose_switches(config: TrainConfig, base: Base, device: torch.device, emit: Emit) -> Switches:
    """Settle what --micro-batch and the other memory settings left open, and tell what that will take."""
    budget = memory.budget_mib(device, config.vram_budget)
    found, estimate = plan.settle(config, base, memory.choose_precision(config.precision, device), budget)
    if estimate:
        emit("plan", budget_mib=budget, total_mib=estimate.total, **asdict(estimate))
        if estimate.total > budget:
            text = f"{estimate.total:.0f} MiB are needed by the estimate, {budget:.0f} MiB are there"
            emit("warning", message=f"this may run out of memory: {text}")
    return found


def _checkpoint(loop: Loop, run_dir: RunDir, ranks: Ranks, emit: Emit) -> dict[str, float]:
    """Save the state, and look whether unlearning carries over to sensitive images it has not seen."""
    rises = loop.rises()
    if ranks.is_first:
        run_dir.save_state(loop.progress.step, loop.state(), keep=loop.config.keep_states)
    emit("checkpoint", step=loop.progress.step, of=loop.config.steps, rises=rises)
    return rises


def _try_picture(picture: Callable[[Trained, int], None], so_far: Trained, step: int, emit: Emit) -> None:
    try:
        picture(so_far, step)
    except Exception as error:  # a picture is never worth a run
        emit("warning", message=f"no picture at step {step}: {error}")


def save_lora(
    config: TrainConfig,
    base: Base,
    folders: Folders,
    run_dir: RunDir,
    loop: Loop,
    last: StepReport | None,
    started: float,
) -> None:
    """Write the LoRA of the last finished step, with everything that is needed to make it again but the images.

    Args: started: when this process began to train, in seconds since 1970.
    """
    standard = lora_file.standard_metadata(
        name=run_dir.name,
        rank=config.rank,
        alpha=config.effective_alpha,
        resolution=config.resolution,
        base_name="pu-unlearn miniature" if config.base == BUILTIN else base.path.name,
        base_hash=model.part_hash(base, "unet"),
        finished=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        prediction_type=loop.prediction_type,
        clip_skip=config.clip_skip,
    )
    captions = ([s.caption for s in kind] for kind in (folders.unlabeled, folders.sensitive))
    images = lora_file.dataset_metadata(*captions, started=started, show_sensitive=config.metadata == "full")
    own = {
        "pu_config": json.dumps(_public_config(config), ensure_ascii=False),
        "pu_sensitive_captions": _public_captions(config, folders),
        "pu_counts": json.dumps({k: len(getattr(folders, k)) for k in ("unlabeled", "sensitive", "held_out")}),
        "pu_prior": str(config.prior),
        "pu_steps": str(loop.progress.step),
        "pu_base_error": json.dumps(None if loop.scale.base_error is None else loop.scale.base_error.tolist()),
        "pu_risks": json.dumps(_finite(asdict(last)) if last else None),
        "pu_versions": json.dumps({"pu-unlearn": __version__, **{name: version(name) for name in LIBRARIES}}),
    }
    tensors = lora_file.to_kohya(
        lora.weights(loop.learner.unet), alpha=config.effective_alpha, dtype=DTYPES[config.save_precision]
    )
    lora_file.save(run_dir.lora, tensors, {**standard, **images, **own})


def _save_merged(config: TrainConfig, base: Base, run_dir: RunDir, weights: dict[str, torch.Tensor]) -> None:
    scale = config.effective_alpha / config.rank
    target = run_dir.lora.with_name(f"{run_dir.name}-merged")
    if config.save_merged == "folder":
        merge.save_folder(base, target, weights, scale=scale, dtype=DTYPES[config.save_precision])
    elif config.save_merged == "checkpoint":
        merge.save_checkpoint(base, target.with_name(f"{target.name}.safetensors"), weights, scale=scale)


def _public_config(config: TrainConfig) -> dict[str, Any]:
    """The settings without anything that tells about the user's disk or the sensitive images."""
    values = config.model_dump()
    public = {k: v.name if isinstance(v, Path) else v for k, v in values.items()}
    public["base"] = Path(config.base).name
    if config.metadata == "safe" and config.sensitive_prompt:
        public["sensitive_prompt"] = lora_file.hashed(config.sensitive_prompt)
    return public


def _public_captions(config: TrainConfig, folders: Folders) -> str:
    captions = sorted({s.caption for s in folders.sensitive if s.caption})
    return json.dumps(captions if config.metadata == "full" else [lora_file.hashed(c) for c in captions])


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no nan: absent risks become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
