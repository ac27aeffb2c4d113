"""One run: phase 1 (encode), phase 2 (train the LoRA), and what is saved of it when."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from ..audit import auto_prior
from ..common.distributed import ONE, Ranks
from ..common.errors import NonFinite, Stopped, UserError
from ..config.train_config import TrainConfig, to_toml
from ..data.folders import Folders
from ..data.latent_cache import Encoded, encode
from ..data.sampler import views
from ..generation.preservation import preservation_samples
from ..memory import devices, planner
from ..memory.memory_plan import MemoryPlan
from ..models import base_model, full_network, lora
from ..models.base_model import Base
from ..reporting.run_dir import RunDir
from . import resume
from .context import Emit, TrainedModel
from .learner import Learner, whole, with_lora
from .saving import save_merged, save_result
from .training_loop import TrainingLoop

CHECKPOINTS = 10  # states and probes over a run


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
    picture: Callable[[TrainedModel, int], None],
) -> TrainedModel:
    """Train and save the LoRA.

    Args:
        ranks: processes that train this LoRA together; only the first one writes.
        check: raises Stopped when the user asked for it; called before each pass through a model.
        picture: makes the pictures during training (--sample-every) from (what is trained so far, step).
    Raises: Stopped, NonFinite or what tells of memory, after saving LoRA and state of the last finished step;
        UserError.
    """
    started = time.time()
    device = devices.choose_device(config.device, is_alone=ranks.world == 1)
    state = run_dir.load_state() if is_resume else None
    if len(set(ranks.all(f"{run_dir.name} {state['progress']['step']}" if state else ""))) > 1:
        raise UserError("--resume: the processes found different states. Give --name, and the same folder to all.")
    if state:
        resume.check_settings(state, config)
    switches = _choose_switches(resume.with_formats(config, state, device), base, device, ranks, emit)
    if config.keep_prompts:
        emit("phase", name="keep")
        make = partial(preservation_samples, config, base, run_dir.keep, switches, device=device, check=check)
        if ranks.is_first:
            make()
        ranks.wait()
        folders = replace(folders, unlabeled=[*folders.unlabeled, *make()])
    encoded = _encode(config, base, folders, run_dir, ranks, device, emit, check)
    if config.prior == "auto":
        config = _with_prior(config, base, folders, run_dir, ranks, device, switches, emit, check)
    data = resume.digest(folders, encoded, base)
    if state:
        resume.check_data(state, data)
    of = resume.record(config, data, switches, device)
    loop = _load(config, base, folders, encoded, ranks, device, switches, emit, check)
    if state:
        loop.restore(state)
        if ranks.is_first:
            run_dir.truncate_events(loop.progress.step)
    emit("phase", name="calibrate")
    loop.prepare()
    devices.reset_peak(loop.device)
    emit("phase", name="train", device=str(loop.device), **{**asdict(loop.switches), "micro_batch": loop.micro_batch})
    report, rises = None, {}
    try:
        for report in loop.steps():
            emit("step", **asdict(report))
            every = config.save_state_every or max(1, config.steps // CHECKPOINTS)
            if report.step % every == 0 or report.step == config.steps:
                rises = _checkpoint(loop, of, run_dir, ranks, emit)
            if (
                ranks.is_first
                and config.sample_every
                and report.step % config.sample_every == 0
                and report.step < config.steps
            ):
                _try_picture(
                    picture,
                    TrainedModel(config, loop.learner.unet, loop.device, base, folders, rises),
                    report.step,
                    emit,
                )
    except (Stopped, Exception) as error:
        is_known = isinstance(error, Stopped | NonFinite) or devices.is_out_of_memory(error)
        if is_known and loop.progress.step and loop.learner.is_whole and ranks.is_first:
            _save_state(loop, of, run_dir)
            save_result(config, base, folders, run_dir, loop, report, started)
        raise
    rises = rises or loop.rises()  # a run that was resumed behind its last step; as long as the cache is there
    if ranks.is_first:
        save_result(config, base, folders, run_dir, loop, report, started)
        save_merged(config, base, run_dir, loop)
    ranks.wait()  # others may still read
    if not config.keep_cache:
        run_dir.remove_cache()  # every machine has its own
    return TrainedModel(config, loop.learner.unet, loop.device, base, folders, rises)


def _with_prior(
    config: TrainConfig,
    base: Base,
    folders: Folders,
    run_dir: RunDir,
    ranks: Ranks,
    device: torch.device,
    switches: MemoryPlan,
    emit: Emit,
    check: Callable[[], None],
) -> TrainConfig:
    """The settings with the prior estimated, also in config.toml: a resumed run, or one made again, has the same."""
    emit("phase", name="prior")
    value, lines = None, []
    if ranks.is_first:
        progress = partial(_progress, emit, check, "prior")
        value, lines = auto_prior.resolve_prior(
            config, base, folders, run_dir.cache, switches, device=device, progress=progress
        )
    config = config.model_copy(update={"prior": ranks.agree(value)})
    for line in lines:
        emit("prior", value=config.prior, message=line)
    if ranks.is_first:
        run_dir.save_config(to_toml(config))
    return config


def _progress(emit: Emit, check: Callable[[], None], phase: str, what: str, done: int, of: int) -> None:
    check()
    emit("phase", name=phase, what=what, done=done, total=of)


def _encode(
    config: TrainConfig,
    base: Base,
    folders: Folders,
    run_dir: RunDir,
    ranks: Ranks,
    device: torch.device,
    emit: Emit,
    check: Callable[[], None],
) -> Encoded:
    samples = [*folders.unlabeled, *folders.sensitive, *folders.held_out]
    return encode(
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
        progress=partial(_progress, emit, check, "encode"),
    )


def _load(
    config: TrainConfig,
    base: Base,
    folders: Folders,
    encoded: Encoded,
    ranks: Ranks,
    device: torch.device,
    switches: MemoryPlan,
    emit: Emit,
    check: Callable[[], None],
) -> TrainingLoop:
    emit("phase", name="load")
    warn = lambda text: emit("warning", message=text)  # noqa: E731
    if config.network == "full":
        network, unet = full_network, whole(base, switches, device, warn)
    else:
        network, unet = lora, with_lora(config, base, switches, device, warn)
    learner = Learner(
        config, unet, network, precision=switches.precision, device=device, is_alone=ranks.world == 1, warn=warn
    )
    noise = base_model.load_alphas_cumprod(base)
    return TrainingLoop(config, folders, encoded, learner, noise, switches, device=device, ranks=ranks, check=check)


def _choose_switches(config: TrainConfig, base: Base, device: torch.device, ranks: Ranks, emit: Emit) -> MemoryPlan:
    """Settle what --micro-batch and the other memory settings left open, and tell what that will take."""
    budget = devices.budget_mib(device, config.vram_budget)
    precision = devices.common_precision(ranks.all(devices.choose_precision(config.precision, device)))
    found, estimate = planner.resolve(config, base, precision, budget)
    if estimate:
        emit("plan", budget_mib=budget, total_mib=estimate.total, switches=asdict(found), **asdict(estimate))
        if estimate.total > budget:
            text = f"{estimate.total:.0f} MiB are needed by the estimate, {budget:.0f} MiB are there"
            emit("warning", message=f"this may run out of memory: {text}")
    return found


def _save_state(loop: TrainingLoop, of: dict[str, Any], run_dir: RunDir) -> None:
    run_dir.save_state(loop.progress.step, {**loop.state(), "run": of}, keep=loop.config.keep_states)


def _checkpoint(loop: TrainingLoop, of: dict[str, Any], run_dir: RunDir, ranks: Ranks, emit: Emit) -> dict[str, float]:
    """Save the state, and look whether unlearning carries over to sensitive images it has not seen."""
    rises = loop.rises()
    if ranks.is_first:
        _save_state(loop, of, run_dir)
    emit("checkpoint", step=loop.progress.step, of=loop.config.steps, rises=rises)
    return rises


def _try_picture(picture: Callable[[TrainedModel, int], None], so_far: TrainedModel, step: int, emit: Emit) -> None:
    try:
        picture(so_far, step)
    except Exception as error:  # a picture is never worth a run
        emit("warning", message=f"no picture at step {step}: {error}")
