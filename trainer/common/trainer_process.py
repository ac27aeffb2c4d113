"""Start `python -m trainer` as a process of its own: what it leaves in memory is gone afterwards."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import errors
from .errors import UserError

TRAINER_MAIN = Path(__file__).resolve().parents[1] / "__main__.py"


def run_trainer(words: Sequence[str]) -> None:
    """Run one command to its end, its output on ours.

    Args: words: of the command line, after `python -m trainer`.
    Raises: Stopped if the user stopped it; UserError if it failed.
    """
    print("python -m trainer", *words, flush=True)
    code = subprocess.run([sys.executable, str(TRAINER_MAIN), *words], check=False).returncode
    if code == errors.STOPPED:
        raise errors.Stopped
    if code:
        raise UserError(f"that run ended with exit code {code}; the same call continues from there")
