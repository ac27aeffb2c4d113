"""`python -m trainer`: argv -> command, exit codes. A user's error is one sentence, never a traceback.

Everything that imports torch is imported late: --help and every error about options and paths come at once.
"""

import contextlib
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

if not __package__:  # started by its path, as ComfyUI does: an isolated Python ignores the working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "trainer"

from . import data, errors, hub, model
from .builtin import CONFIG
from .command_line import Invocation, parse
from .config import TrainConfig, to_toml
from .console import Console
from .dataset import Folders
from .errors import UserError
from .files import locked, unwritable
from .libraries import torch_without_cuda
from .model import Base
from .ranks import Ranks, from_environment
from .run_dir import RunDir, free_name
from .stopping import follow_parent, stoppable

COMMANDS = {  # beside training: module and function, imported when asked for
    "audit": (".audit", "main"),
    "bench": (".bench", "main"),
    "compare": (".compare", "main"),
    "evaluate": (".evaluate", "main"),
    "make-data": (".make_data", "main"),
    "plan": (".plan", "main"),
    "prior": (".audit", "prior_main"),
    "reproduce": (".experiments.reproduce", "main"),
    "sample": (".sample", "main"),
    "ui": (".ui", "main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: an exit code of `errors`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it misses what only 4-bit models need
    try:
        if argv and argv[0] == "plan":
            parse(argv[1:], CONFIG, needs_images=False)  # before the slow import
        if argv and argv[0] in COMMANDS:
            module, function = COMMANDS[argv[0]]
            return getattr(import_module(module, __package__), function)(argv[1:])
        if argv and argv[0] == "data":
            return data.run(parse(argv[1:], CONFIG))
        invocation = parse(argv, CONFIG)
        if invocation.follow_parent:
            follow_parent()
        if invocation.dry_run:
            print(to_toml(invocation.config), end="")
            return errors.DONE
        return train_command(invocation)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.BAD_INPUT
    except (KeyboardInterrupt, errors.Stopped):
        print("stopped", file=sys.stderr)
        return errors.STOPPED
    except Exception as error:  # of a command beside training, which tells its own
        if said := unwritable(error):
            print(f"error: {said}", file=sys.stderr)
            return errors.FAILED
        from .memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print("error: out of memory. Try a smaller --resolution, or --device cpu.", file=sys.stderr)
        return errors.OUT_OF_MEMORY


def train_command(invocation: Invocation) -> int:
    """Train, make the pictures, write the report. Returns: an exit code."""
    config = invocation.config
    ranks = from_environment(is_cpu=config.device == "cpu")
    if not invocation.resume:
        config = config.model_copy(update={"name": ranks.agree(free_name(config.output_dir, config.name))})
    run_dir = RunDir(config.output_dir, config.name)
    console = Console(run_dir, jsonl=invocation.events, logging_dir=config.logging_dir, is_silent=not ranks.is_first)
    _introduce(invocation, run_dir, console)
    base = _find_base(config)
    if not invocation.is_builtin:
        folders = data.find(config)  # before anything is written
    try:
        run_dir.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir: {config.output_dir} cannot be written to ({error.strerror})") from None
    if invocation.is_builtin:
        config = data.with_digits(config, ranks)
        folders = data.find(config)
    lock = locked(run_dir.root) if ranks.is_first else contextlib.nullcontext()
    with lock, contextlib.closing(console):
        _tell_found(config, folders, console)
        if ranks.is_first:
            run_dir.save_config(to_toml(config))
        try:
            return _train(config, base, folders, run_dir, ranks, console, is_resume=invocation.resume)
        except errors.Stopped:
            console.emit("error", kind="stopped", message="stopped by the user")
            where = f'--name "{config.name}"{_output(config)}'
            advice = (
                f"go on with: python -m trainer --resume {where}" if run_dir.has_state else "nothing was trained yet"
            )
            print(f"stopped; {advice}", file=sys.stderr)
            return errors.STOPPED
        except UserError as error:
            console.emit("error", kind="input", message=str(error))
            raise
        except errors.NonFinite as error:
            console.emit("error", kind="non-finite", message=str(error))
            print(f"error: {error}", file=sys.stderr)
            return errors.FAILED
        except Exception as error:
            return _failed(error, config, base, console)


def _train(
    config: TrainConfig,
    base: Base,
    folders: Folders,
    run_dir: RunDir,
    ranks: Ranks,
    console: Console,
    *,
    is_resume: bool,
) -> int:
    with stoppable() as check:
        # after the handler is in place: the import takes seconds, in which Ctrl-C must be heard
        from . import before_after, report, save, train

        prompt = train.picture_prompt(config, folders)
        picture = before_after.picture_at_step(config, prompt, run_dir, emit=console.emit, check=check)
        trained = train.run(
            config,
            base,
            folders,
            run_dir,
            ranks=ranks,
            is_resume=is_resume,
            emit=console.emit,
            check=check,
            picture=picture,
        )
        if not ranks.is_first:
            return errors.DONE
        if report.memorising(trained.rises):
            console.emit("warning", message=report.memorising_text(trained.rises))
        evaluation = before_after.before_after(config, trained, run_dir, emit=console.emit, check=check)
        report.write(trained, evaluation, save.result_path(config, base, run_dir), run_dir)
    result = save.result_path(config, base, run_dir)
    summary = report.summary(evaluation, result, run_dir)
    console.emit(
        "done",
        lora=str(result),
        report=str(run_dir.report),
        summary="\n".join(summary),
        **report.numbers(evaluation),
    )
    for line in summary:
        console.say(line)
    return errors.DONE


def _introduce(invocation: Invocation, run_dir: RunDir, console: Console) -> None:
    if invocation.resume:
        console.say(f"going on with {run_dir.root}")
    if fix := torch_without_cuda():
        console.emit("warning", message=fix)  # also where another program shows what comes out of this one
    if invocation.is_builtin:
        console.say(
            "No model and no images named: training the built-in miniature on real handwritten digits (even = normal, "
            "odd = sensitive).\nFor your own: python -m trainer --base MODEL.safetensors --unlabeled DIR "
            '--sensitive DIR --prompt "a photo of …"'
        )


def _find_base(config: TrainConfig) -> Base:
    base = Base(hub.find(config.base), config.vae, config.prediction_type)
    model.check(base, clip_skip=config.clip_skip)
    return base


def _tell_found(config: TrainConfig, folders: Folders, console: Console) -> None:
    for line in folders.skipped:
        console.emit("warning", message=f"skipped {line}")
    for line in data.describe(config, folders):
        console.say(line)
    if data.may_spill_over(config, folders):
        console.emit("warning", message=data.SPILL_OVER)


def _output(config: TrainConfig) -> str:
    default = TrainConfig.model_fields["output_dir"].default
    return "" if config.output_dir == default else f' --output-dir "{config.output_dir}"'


def _failed(error: Exception, config: TrainConfig, base: Base, console: Console) -> int:
    """Memory and disk get advice; anything else is our own bug and keeps its traceback, in a file."""
    import traceback

    from .memory import is_out_of_memory

    if is_out_of_memory(error):
        message = "out of memory. Try --lowvram, a smaller --resolution or a smaller --rank."
        with contextlib.suppress(Exception):  # what is left may not be enough to find better advice
            from . import plan

            message = "out of memory. " + plan.advice(config, base, console.run_dir.events())
        console.emit("error", kind="out-of-memory", message=message)
        print(f"error: {message}", file=sys.stderr)
        return errors.OUT_OF_MEMORY
    if said := unwritable(error):
        message = f"{said}. What was saved before is kept."
        with contextlib.suppress(OSError):
            console.emit("error", kind="disk", message=message)
        print(f"error: {message}", file=sys.stderr)
        return errors.FAILED
    path = console.run_dir.root / "traceback.txt"
    message = f"{type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        console.emit("error", kind="failed", message=message)
    print(f"error: {message}\nThis is a bug, or a library that does not fit. Details: {path}", file=sys.stderr)
    return errors.FAILED


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # Windows consoles and pipes have their own ideas
    sys.exit(main())
