"""`python -m trainer`: argv -> command, exit codes. A user's error is one sentence, never a traceback.

Everything that imports torch is imported late: --help and errors about options and paths appear within a second.
"""

import io
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

if not __package__:  # started by its path, as ComfyUI does: an isolated Python ignores the working directory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    __package__ = "trainer"

from .builtin import CONFIG
from .common import errors
from .common.errors import UserError
from .common.files import describe_write_error
from .common.interrupts import follow_parent
from .config.arguments import COMMANDS, parse
from .config.parser import nearest
from .config.train_config import to_toml
from .data import inputs
from .training.command import train_command

MODULES = {  # command -> module and function, imported when asked for
    "audit": (".audit.command", "main"),
    "bench": (".experiments.benchmark", "main"),
    "compare": (".evaluation.compare_command", "main"),
    "evaluate": (".evaluation.command", "main"),
    "make-data": (".generation.make_data_command", "main"),
    "plan": (".memory.planner", "main"),
    "prior": (".audit.command", "prior_main"),
    "reproduce": (".experiments.reproduce", "main"),
    "sample": (".generation.sample_command", "main"),
    "ui": (".ui", "main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: an exit code of `errors`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"]:
        argv = argv[1:]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it misses what only 4-bit models need
    try:
        if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
            raise UserError(f"{argv[0]}: no such command{nearest(argv[0], list(COMMANDS))}")
        if argv and argv[0] == "plan":
            parse(argv[1:], CONFIG, needs_images=False)  # before the slow import
        if argv and argv[0] in MODULES:
            module, function = MODULES[argv[0]]
            return getattr(import_module(module, __package__), function)(argv[1:])
        if argv and argv[0] == "data":
            return inputs.run(parse(argv[1:], CONFIG))
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
        if said := describe_write_error(error):
            print(f"error: {said}", file=sys.stderr)
            return errors.FAILED
        from .memory.devices import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print("error: out of memory. Try a smaller --resolution, or --device cpu.", file=sys.stderr)
        return errors.OUT_OF_MEMORY


def program() -> int:
    """Run `python -m trainer`, also as the command `pu-unlearn`. Returns: an exit code of `errors`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # nothing at all under pythonw
            stream.reconfigure(encoding="utf-8", errors="replace")  # Windows consoles and pipes have their own ideas
    return main()


if __name__ == "__main__":
    sys.exit(program())
