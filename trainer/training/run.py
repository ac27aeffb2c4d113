"""One run in named stages: settle a resume, plan the memory, prepare the job, load the loop, train and save."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..audit.auto_prior import resolve_prior
from ..common.errors import NonFinite, Stopped, UserError
from ..common.host_memory import give_back
from ..common.wording import counted
from ..config.train_config import to_toml, with_absolute_paths
from ..data import sampler
from ..data.job import TrainingJob
from ..data.latent_cache import Encoded, Held, LatentCache, hold
from ..generation.preservation import preservation_samples
from ..memory import devices, planner
from ..memory.memory_plan import DTYPES, MemoryPlan
from ..models import base_model
from ..models.text_states import longer_than
from ..reporting.run_context import RunContext
from . import resume
from .denoiser import Denoiser
from .learner import Learner, TrainedModel, check_init_lora, full_network, lora_network
from .saving import HarmWatch, save_merged, save_result
from .training_loop import TrainingLoop

CHECKPOINTS = 10  # states and probes over a run

MakePicture = Callable[[TrainedModel, int], None]  # (what is trained so far, step)


@dataclass(frozen=True)
class Prepared:
    """A job that is ready to train."""

    job: TrainingJob  # with preservation images, and the prior estimated
    encoded: Encoded
    record: dict[str, Any]  # what a state keeps of its run, see resume.record


def run(job: TrainingJob, context: RunContext, *, is_resume: bool, picture: MakePicture) -> TrainedModel:
    """Train and save the LoRA.

    Args: picture: makes the pictures during training (--sample-every).
    Raises: Stopped, NonFinite or what tells of memory, after saving LoRA and state of the last finished step;
        UserError.
    """
    started = time.time()
    check_init_lora(job)
    state = _settle_resume(job, context) if is_resume else None
    plan = _choose_memory_plan(job, context, state)
    prepared = _prepare_job(job, context, plan, state)
    while not isinstance(made := _attempt(prepared, context, plan, state, picture, started), TrainedModel):
        plan = made
        give_back()
        formats = {**prepared.record["formats"], "weights": plan.weights}
        prepared = replace(prepared, record={**prepared.record, "formats": formats})
        if state:  # the first attempt may have changed its tensors
            state = context.run_dir.load_state()
    return made


def _settle_resume(job: TrainingJob, context: RunContext) -> dict[str, Any] | None:
    """Load the state to resume from; None for a run that was stopped before its first one: it starts with step 1.

    Raises: UserError if settings or processes disagree on it.
    """
    state = context.run_dir.load_state() if context.run_dir.has_state else None
    step = state["progress"]["step"] if state else 0
    if len(set(context.ranks.all_gather(f"{context.run_dir.name} {step}"))) > 1:
        raise UserError("--resume: the processes found different states. Give --name, and the same folder to all.")
    if state:
        resume.check_settings(state, job.config)
    if context.ranks.is_first:
        context.run_dir.truncate_events(step)
    return state


def _choose_memory_plan(job: TrainingJob, context: RunContext, state: dict[str, Any] | None) -> MemoryPlan:
    """Choose what --micro-batch and the other memory settings left open, and report what that will take."""
    config = resume.with_formats(job.config, state, context.device)
    if context.device.type != "cuda" and config.offload == "auto":
        config = config.model_copy(update={"offload": 0})  # to where the weights are already
    budget = devices.budget_mib(context.device, config.vram_budget)
    own = devices.choose_precision(config.precision, context.device)
    precision = devices.common_precision(context.ranks.all_gather(own))
    plan, estimate = planner.resolve(config, job.base, precision, budget)
    if len(set(context.ranks.all_gather(plan.weights))) > 1:  # one card has no room for what the others keep: one LoRA
        config = config.model_copy(update={"weights": "fp8"})
        plan, estimate = planner.resolve(config, job.base, precision, budget)
    if estimate:
        fields = {"budget_mib": budget, "total_mib": estimate.total, "switches": asdict(plan)}
        context.emit("plan", **fields, **asdict(estimate))
        if estimate.total > budget:
            text = f"{estimate.total:.0f} MiB are needed by the estimate, {budget:.0f} MiB are there"
            context.warn(f"this may run out of memory: {text}")
    return plan


def _attempt(
    prepared: Prepared,
    context: RunContext,
    plan: MemoryPlan,
    state: dict[str, Any] | None,
    picture: MakePicture,
    started: float,
) -> TrainedModel | MemoryPlan:
    """Load and train. Returns: what was trained; or, where memory ran out before a first step, what to try next."""
    first, loop = state["progress"]["step"] if state else 0, None
    try:
        loop = _load_loop(prepared, context, plan, state)
        return _train_and_save(prepared, context, loop, picture, started)
    except Exception as error:
        has_begun = loop is not None and not first == loop.progress.step < prepared.job.config.steps
        if has_begun or context.ranks.world > 1 or not devices.is_out_of_memory(error):
            raise
        # a resumed run keeps its number formats; Apple's GPUs have no fp8
        fixed = {"weights"} if state or context.device.type == "mps" else set()
        if context.device.type != "cuda":
            fixed.add("offload")
        smaller = planner.more_frugal(prepared.job.config, prepared.job.base, plan, fixed=fixed)
        if smaller is None:
            raise
        context.warn(f"out of memory before the first step; trying again with {planner.describe(smaller)}")
        return smaller


def _prepare_job(job: TrainingJob, context: RunContext, plan: MemoryPlan, state: dict[str, Any] | None) -> Prepared:
    """Make the preservation images, encode everything, estimate the prior.

    Raises: UserError if state was taken from other images or another model.
    """
    if job.config.keep_prompts:
        job = _with_preservation_images(job, context, plan)
    _warn_of_long_captions(job, context)
    encoded = _encode(job, context)
    if job.config.prior == "auto":
        job = _with_prior(job, context, plan)
    data = resume.digest(job.folders, encoded, job.base)
    if state:
        resume.check_data(state, data)
    return Prepared(job, encoded, resume.record(job.config, data, plan, context.device))


def _with_preservation_images(job: TrainingJob, context: RunContext, plan: MemoryPlan) -> TrainingJob:
    context.phase("keep")
    if context.ranks.is_first:
        preservation_samples(job, plan, context)
    context.ranks.wait()
    more = preservation_samples(job, plan, context)
    return replace(job, folders=replace(job.folders, unlabeled=[*job.folders.unlabeled, *more]))


def _warn_of_long_captions(job: TrainingJob, context: RunContext) -> None:
    limit = job.config.max_token_length
    kinds = job.folders.unlabeled, job.folders.sensitive
    captions = sorted({sample.caption for kind in kinds for sample in kind if sample.caption})
    if cut := longer_than(base_model.load_tokenizer(job.base), captions, limit):
        advice = f"; --max-token-length {limit + 75} reads more" if limit < 225 else ""
        many = f"{len(cut)} of {counted(len(captions), 'caption')}"
        context.warn(f"{many} have more than {limit} tokens, the rest is cut off: “{cut[0][:60]}…”{advice}")


def _encode(job: TrainingJob, context: RunContext) -> Encoded:
    config, folders = job.config, job.folders
    samples = [*folders.unlabeled, *folders.sensitive, *folders.held_out]
    folder, device = context.run_dir.cache, context.device
    text = config.clip_skip, config.max_token_length
    cache = LatentCache(job.base, folder, config.resolution, config.bucket, device, *text)
    captions = sampler.batches(config, folders).all_captions()
    return cache.encode(
        samples,
        captions,
        views=sampler.views(flip=config.flip, crops=config.crops),
        ranks=context.ranks,
        progress=context.progress("encode"),
    )


def _with_prior(job: TrainingJob, context: RunContext, plan: MemoryPlan) -> TrainingJob:
    """Estimate the prior, also for config.toml: a resumed run, or one made again, has the same."""
    context.phase("prior")
    value: float | None = None
    lines: list[str] = []
    if context.ranks.is_first:
        value, lines = resolve_prior(job, plan, context)
    config = job.config.model_copy(update={"prior": context.ranks.broadcast(value)})
    for line in lines:
        context.emit("prior", value=config.prior, message=line)
    if context.ranks.is_first:
        context.run_dir.save_config(to_toml(with_absolute_paths(config)))
    return replace(job, config=config)


def _load_loop(prepared: Prepared, context: RunContext, plan: MemoryPlan, state: dict[str, Any] | None) -> TrainingLoop:
    """Load the U-Net, put it where state left off, and measure the base model's error."""
    context.phase("load", switches=asdict(plan))
    job = prepared.job
    network = (full_network if job.config.network == "full" else lora_network)(job, context, plan)
    learner = Learner(job.config, network, plan.precision, context)
    denoiser = Denoiser(
        network.unet,
        DTYPES[plan.precision],
        hold(prepared.encoded, processes=context.ranks.world),
        base_model.load_noise_schedule(job.base),
        job.config.seed,
        context.device,
        learner.accelerator.autocast,
        before=context.check if context.ranks.world == 1 else lambda: None,
        noise_offset=job.config.noise_offset,
    )
    loop = TrainingLoop(job.config, job.folders, learner, denoiser, plan, context)
    if state:
        loop.restore(state)
    context.phase("calibrate")
    loop.prepare()
    devices.reset_peak(context.device)
    context.phase("train", device=str(context.device), **{**asdict(plan), "micro_batch": loop.micro_batch})
    return loop


def _train_and_save(
    prepared: Prepared, context: RunContext, loop: TrainingLoop, picture: MakePicture, started: float
) -> TrainedModel:
    """Take the steps, saving states on the way; save the LoRA at the end, and where the run is cut short."""
    job, config, is_first = prepared.job, prepared.job.config, context.ranks.is_first
    every = config.save_state_every or max(1, config.steps // CHECKPOINTS)
    growth: dict[str, float] = {}
    watch, first = HarmWatch(), loop.progress.step
    try:
        for report in loop.steps():
            context.emit("step", **asdict(report))
            is_last = report.step == config.steps
            if is_first and config.save_every and report.step % config.save_every == 0 and not is_last:
                save_result(job, context, loop, started, at_step=report.step)
            if is_first and config.sample_every and report.step % config.sample_every == 0 and not is_last:
                so_far = TrainedModel(job, loop.learner.network, context.device, growth)
                _try_picture(picture, so_far, report.step, context)
            if report.step % every == 0 or is_last:  # last: a run killed before it makes what belongs to the step again
                growth = _checkpoint(prepared, context, loop)
                watch.look(job, context, loop, growth, started)
    except (Stopped, Exception) as error:
        is_starved = devices.is_out_of_memory(error) and loop.progress.step > first  # else nothing is new
        is_known = is_starved or isinstance(error, Stopped | NonFinite)
        if is_known and loop.progress.step and loop.learner.is_whole and is_first:
            _save_state(prepared, context, loop)
            save_result(job, context, loop, started)
        raise
    growth = growth or loop.loss_growth()  # a run resumed after its last step; needs the cache
    if is_first:
        save_result(job, context, loop, started)
        save_merged(job, context, loop)
    context.ranks.wait()  # others may still read
    if isinstance(loop.denoiser.encoded, Held):
        loop.denoiser.encoded.release()
    if not config.keep_cache:
        context.run_dir.remove_cache()  # every machine has its own
    return TrainedModel(job, loop.learner.network, context.device, growth, loop.progress.negative)


def _save_state(prepared: Prepared, context: RunContext, loop: TrainingLoop) -> None:
    state = {**loop.state(), "run": prepared.record}
    context.run_dir.save_state(loop.progress.step, state, keep=prepared.job.config.keep_states)


def _checkpoint(prepared: Prepared, context: RunContext, loop: TrainingLoop) -> dict[str, float]:
    """Save the state, and measure whether unlearning carries over to sensitive images that are held out."""
    growth = loop.loss_growth()
    if context.ranks.is_first:
        _save_state(prepared, context, loop)
    context.emit("checkpoint", step=loop.progress.step, of=prepared.job.config.steps, rises=growth)
    return growth


def _try_picture(picture: MakePicture, so_far: TrainedModel, step: int, context: RunContext) -> None:
    try:
        picture(so_far, step)
    except Exception as error:  # a picture is never worth a run
        context.warn(f"no picture at step {step}: {error}")
