"""Shared by all tests: small folders of real digits, and `python -m trainer` as users call it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing may need the network


@pytest.fixture(scope="session")
def digit_folders(tmp_path_factory):
    """`unlabeled` (10), `sensitive` (6) and `sensitive_captioned` (6): real digits as PNG."""
    from trainer.builtin import digits

    return digits.write_folders(tmp_path_factory.mktemp("digits"), 10, 6)


@pytest.fixture
def trainer():
    """Run `python -m trainer …` to its end; returns the completed process."""

    def call(*arguments, cwd=None, timeout=240):
        return subprocess.run(
            [sys.executable, "-m", "trainer", *map(str, arguments)],
            cwd=cwd or ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
        )

    return call
