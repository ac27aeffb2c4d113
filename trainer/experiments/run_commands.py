"""Experiments written as a list of the trainer's commands, run one after the other."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ..builtin import CONFIG
from ..common import errors
from ..common.trainer_process import run_trainer
from ..config.arguments import parse
from ..reporting.run_dir import RunDir, resume_arguments


def run_all(commands: Sequence[dict[str, str]], out: Path) -> int:
    """Run the commands that are not done yet, each in a process of its own, whose memory is free again afterwards.

    Args: commands: `run` is the command line, `makes` what it leaves below out; {out} stands for out.
    Returns: an exit code. Raises: Stopped; UserError if a command fails.
    """
    for command in commands:
        if (out / command["makes"]).exists():
            continue
        words = [word.replace("{out}", str(out)) for word in shlex.split(command["run"])]
        if words[0].startswith("--"):  # a training
            config = parse(words, CONFIG).config
            words = resume_arguments(RunDir(config.output_dir, config.name), words)
        run_trainer(words)
    return errors.DONE
