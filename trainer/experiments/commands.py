"""Experiments that are commands of the trainer, one after the other: what a user would type, in a file."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import errors
from ..builtin import CONFIG
from ..command_line import parse
from ..errors import UserError
from ..run_dir import RunDir, going_on

MAIN = Path(__file__).parents[1] / "__main__.py"


def run_all(commands: Sequence[dict[str, str]], out: Path) -> int:
    """Run what is not done yet, each in a process of its own, whose memory is free again afterwards.

    Args: commands: `run` is the command line, `makes` what it leaves below out; {out} stands for out.
    Returns: an exit code. Raises: Stopped; UserError if a command fails.
    """
    for command in commands:
        if (out / command["makes"]).exists():
            continue
        words = [word.replace("{out}", str(out)) for word in shlex.split(command["run"])]
        if words[0].startswith("--"):  # a training
            config = parse(words, CONFIG).config
            words = going_on(RunDir(config.output_dir, config.name), words)
        print("python -m trainer", shlex.join(words), flush=True)
        code = subprocess.run([sys.executable, str(MAIN), *words], check=False).returncode
        if code == errors.STOPPED:
            raise errors.Stopped
        if code:
            raise UserError(f"that ended with exit code {code}; the same call goes on from there")
    return errors.DONE
