"""Shared by all tests: small folders of real digits, and `python -m trainer` as users call it."""

import contextlib
import io
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

# nothing may need the network, nor what an earlier download left: before the hub's library reads them
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(Path(tempfile.gettempdir()) / "pu-unlearn-tests-no-hub")}
if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores; before torch, which reads it when imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from trainer.__main__ import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def digit_folders(tmp_path_factory):
    """`unlabeled` (10), `sensitive` (6) and `sensitive_captioned` (6): real digits as PNG."""
    from trainer.builtin import digits

    return digits.write_folders(tmp_path_factory.mktemp("digits"), 10, 6)


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Keep predictions of memory in a folder of this session, which the processes that it starts read, too."""
    os.environ["PU_UNLEARN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def quick():
    """Make runs in this process shorter: small probes, no plot, and a garbage collector that looks only at what is new.

    The plot has tests of its own, in tests/reporting/test_plots.py.
    """
    import gc

    import torch
    from PIL import Image

    from trainer.builtin import MODEL
    from trainer.models import base_model, networks
    from trainer.training import report, run, training_loop  # noqa: F401  what they import is there to stay

    networks.attach_lora(base_model.load_unet(base_model.Base(MODEL), torch.float32), rank=1, alpha=1, seed=0)
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "PROBE_SAMPLES", 2)
        patch.setattr(report, "draw_loss_curves", lambda steps, path: Image.new("RGB", (1, 1)).save(path))
        yield


@pytest.fixture
def trainer(monkeypatch, quick):
    """`python -m trainer …` in this process, whose imports are done: a start takes seconds. Returns what a child would.

    Tests of signals, kills and start-up time start real ones.
    """

    def call(*arguments, cwd=ROOT):
        monkeypatch.chdir(cwd)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(a) for a in arguments])
            except SystemExit as end:
                code = end.code
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return call
