"""The training command: messages before, during and after a run, and the exit code."""

import contextlib
from collections.abc import Callable

from ..common import errors
from ..common.distributed import Ranks, from_environment
from ..common.errors import UserError
from ..common.files import describe_write_error, locked
from ..common.interrupts import stoppable
from ..common.third_party import torch_without_cuda
from ..config.arguments import Invocation
from ..config.train_config import TrainConfig, to_toml, with_absolute_paths
from ..data import inputs
from ..data.folders import Folders
from ..data.job import TrainingJob
from ..models import base_model, hub
from ..models.base_model import Base
from ..reporting.console import Console
from ..reporting.run_dir import RunDir, free_name
from ..reporting.trackers import Tracker


def train_command(invocation: Invocation) -> int:
    """Train, make the pictures, write the report. Returns: an exit code."""
    config = invocation.config
    ranks = from_environment(is_cpu=config.device == "cpu")
    if not invocation.resume:
        config = config.model_copy(update={"name": ranks.broadcast(free_name(config.output_dir, config.name))})
    run_dir = RunDir(config.output_dir, config.name)
    console = Console(
        run_dir,
        jsonl=invocation.events,
        logging_dir=config.logging_dir,
        is_silent=not ranks.is_first,
        tracker=_tracker(config),
    )
    _introduce(invocation, run_dir, console)
    base = _find_base(config)
    if not invocation.is_builtin:
        folders = inputs.find(config)  # before anything is written
    try:
        run_dir.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir: {config.output_dir} cannot be written to ({error.strerror})") from None
    if invocation.is_builtin:
        config = inputs.with_digits(config, ranks)
        folders = inputs.find(config)
    lock = locked(run_dir.root) if ranks.is_first else contextlib.nullcontext()
    with lock, contextlib.closing(console):
        _describe_folders(config, folders, console)
        if ranks.is_first:
            run_dir.save_config(to_toml(with_absolute_paths(config)))
        try:
            return _train(TrainingJob(config, base, folders), ranks, console, is_resume=invocation.resume)
        except (errors.Stopped, KeyboardInterrupt):  # a second Ctrl-C quits at once
            console.emit("error", kind="stopped", message="stopped by the user")
            where = f'--name "{config.name}"{_output(config)}'
            console.end(f"stopped; to continue: python -m trainer --resume {where}")
            return errors.STOPPED
        except UserError as error:
            console.emit("error", kind="input", message=str(error))
            raise
        except errors.NonFinite as error:
            console.emit("error", kind="non-finite", message=str(error))
            console.end(f"error: {error}")
            return errors.FAILED
        except Exception as error:
            return _failed(error, config, base, console)


def _train(job: TrainingJob, ranks: Ranks, console: Console, *, is_resume: bool) -> int:
    with stoppable() as check:
        # after the handler is in place: the import takes seconds, in which Ctrl-C must be heard
        from ..memory import devices
        from ..reporting.run_context import RunContext
        from . import before_after, report
        from .run import run
        from .saving import result_path

        device = devices.choose_device(job.config.device, is_alone=ranks.world == 1)
        context = RunContext(device, ranks, console.run_dir, console.emit, check)
        trained = run(job, context, is_resume=is_resume, picture=before_after.picture_at_step(job, context))
        if not ranks.is_first:
            return errors.DONE
        evaluation = before_after.before_after(trained, context)
        result = result_path(trained.job, context.run_dir)
        report.write(trained, evaluation, result, context.run_dir)
        for text in report.warnings(trained, evaluation):
            context.warn(text)
    summary = report.summary(evaluation, result, console.run_dir)
    console.emit(
        "done",
        lora=str(result),
        report=str(console.run_dir.report),
        summary="\n".join(summary),
        **report.numbers(evaluation),
    )
    for line in summary:
        console.say(line)
    return errors.DONE


def _tracker(config: TrainConfig) -> Callable[[], Tracker] | None:
    """Return what begins the tracker of --log-with; None without one, and for TensorBoard."""
    kind = config.log_with
    if kind in (None, "tensorboard"):
        return None

    def begin() -> Tracker:
        from .saving import public_settings

        return Tracker(str(kind), config.name, public_settings(config).model_dump(mode="json"))

    return begin


def _introduce(invocation: Invocation, run_dir: RunDir, console: Console) -> None:
    if invocation.resume:
        console.say(f"resuming {run_dir.root} after step {run_dir.newest_step} of {invocation.config.steps}")
    elif run_dir.name != invocation.config.name:
        console.say(f"{invocation.config.name} exists already: this run is {run_dir.name}")
    if fix := torch_without_cuda():
        console.emit("warning", message=fix)  # also where another program shows what comes out of this one
    if invocation.is_builtin:
        console.say(
            "No model and no images named: training the built-in miniature on real handwritten digits (even = normal, "
            "odd = sensitive).\nFor your own: python -m trainer --base MODEL.safetensors --unlabeled DIR "
            '--sensitive DIR --prompt "a photo of …"'
        )


def _find_base(config: TrainConfig) -> Base:
    assert config.base is not None  # parse refuses a command line without a model
    base = Base(hub.resolve_model_path(config.base), config.vae, config.prediction_type)
    base_model.check(base, clip_skip=config.clip_skip)
    return base


def _describe_folders(config: TrainConfig, folders: Folders, console: Console) -> None:
    for line in folders.skipped:
        console.emit("warning", message=f"skipped {line}")
    for line in folders.notes:
        console.emit("warning", message=line)
    for line in inputs.describe(config, folders):
        console.say(line)
    for line in inputs.warnings(config, folders):
        console.emit("warning", message=line)


def _output(config: TrainConfig) -> str:
    default = TrainConfig.model_fields["output_dir"].default
    return "" if config.output_dir == default else f' --output-dir "{config.output_dir}"'


def _failed(error: Exception, config: TrainConfig, base: Base, console: Console) -> int:
    """Report an error: memory and disk with advice; anything else as a bug, its traceback saved to a file."""
    import traceback

    from ..memory.devices import is_out_of_memory

    if is_out_of_memory(error):
        message = "out of memory. Try --lowvram, a smaller --resolution or a smaller --rank."
        with contextlib.suppress(Exception):  # what is left may not be enough to find better advice
            from ..memory import planner

            message = "out of memory. " + planner.advice(config, base, console.run_dir.events())
        console.emit("error", kind="out-of-memory", message=message)
        console.end(f"error: {message}")
        return errors.OUT_OF_MEMORY
    if said := describe_write_error(error):
        message = f"{said}. What was saved before is kept."
        with contextlib.suppress(OSError):
            console.emit("error", kind="disk", message=message)
        console.end(f"error: {message}")
        return errors.FAILED
    path = console.run_dir.root / "traceback.txt"
    message = f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        console.emit("error", kind="failed", message=message)
    console.end(f"error: {message}\nThis is a bug, or a library that does not fit. Details: {path}")
    return errors.FAILED
