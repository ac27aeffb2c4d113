"""What a step is fed: prepared ahead in a thread, from memory, in micro-batches of one shape, without waiting."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.builtin import MODEL
from trainer.common.distributed import ONE
from trainer.common.host_memory import free_ram_mib
from trainer.config.train_config import TrainConfig
from trainer.data.folders import Folders, Sample
from trainer.data.images import PLAIN
from trainer.data.latent_cache import Encoded, Store, hold
from trainer.memory.memory_plan import MemoryPlan
from trainer.models import base_model
from trainer.models.networks import attach_lora
from trainer.objective.temperature import LossScale
from trainer.reporting.run_context import RunContext
from trainer.reporting.run_dir import RunDir
from trainer.training.denoiser import Denoiser
from trainer.training.feeding import Feeder
from trainer.training.learner import Learner
from trainer.training.training_loop import TrainingLoop

N_UNLABELED, N_SENSITIVE = 5, 3
MODULES = (".py", ".pyc", ".so", ".pyd")  # torch imports some when they are first needed


def encoded(folder):
    """Ten images, every other one wide, and one caption, as the cache has them on disk."""
    generator, store = torch.Generator().manual_seed(0), Store(folder)
    paths = [Path(f"{i}.png") for i in range(10)]
    for i, path in enumerate(paths):
        store.put(path.stem, torch.randn(4, 8, 8 + 8 * (i % 2), generator=generator))
    store.put("text", torch.randn(77, 32, generator=generator))
    return Encoded(store, {(path, PLAIN): path.stem for path in paths}, {"x": "text", "": "text"})


def make_loop(tmp_path, micro_batch, steps=3):
    numbers = {"batch_unlabeled": N_UNLABELED, "batch_sensitive": N_SENSITIVE, "prior": 0.3, "rank": 2}
    config = TrainConfig.model_validate({"steps": steps, "caption_dropout": 0, **numbers})
    samples = [Sample(Path(f"{i}.png"), "x") for i in range(10)]
    network = attach_lora(base_model.load_unet(base_model.Base(MODEL), torch.float32), rank=2, alpha=2.0, seed=0)
    device = torch.device("cpu")
    context = RunContext(device, ONE, RunDir(tmp_path, "x"), emit=lambda event, **fields: None, check=lambda: None)
    learner = Learner(config, network, "fp32", context)
    schedule = base_model.load_noise_schedule(base_model.Base(MODEL))
    autocast = learner.accelerator.autocast
    held = hold(encoded(tmp_path))
    denoiser = Denoiser(network.unet, torch.float32, held, schedule, 0, device, autocast, before=lambda: None)
    plan = MemoryPlan("fp32", "fp32", micro_batch=micro_batch)
    loop = TrainingLoop(config, Folders(samples[:6], samples[6:], [], []), learner, denoiser, plan, context)
    loop._scale = LossScale("per-timestep", 2.0, torch.ones(20))
    return loop


@pytest.mark.parametrize("most_mib", [None, 0], ids=["in memory", "in one mapped file"])
def test_everything_is_held(tmp_path, most_mib):
    found = encoded(tmp_path)
    (tmp_path / "held-999999999.bin").touch()  # of a process that was killed
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    held = hold(found, most_mib=most_mib)
    if sys.platform != "win32":
        left = {path: path.read_bytes() for path in tmp_path.iterdir()}
        if most_mib == 0:
            files.pop(tmp_path / "held-999999999.bin")
        assert left == files  # nothing is left behind
    wanted = {path: found.latents(path, PLAIN).clone() for path, _ in found.latent_keys}
    text = found.text("x").clone()
    for path in files:
        path.unlink()
    assert all(torch.equal(held.latents(path, PLAIN), value) for path, value in wanted.items())
    assert torch.equal(held.text("x"), text)


class Waits(TorchDispatchMode):
    """Counts the operations for which the host waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_opens_no_file_and_waits_as_often_for_any_micro_batch(tmp_path, monkeypatch):
    """The optimizer's own counters, which are on the host, are left out."""
    opened, watched, waits = [], [], {}
    sys.addaudithook(lambda event, args: opened.append(args[0]) if watched and event == "open" else None)
    for micro_batch in (1, 8):
        loop, seen = make_loop(tmp_path, micro_batch), Waits()
        reader = Mock()  # safetensors opens without Python's open
        monkeypatch.setattr(loop, "_accumulate", counted(loop._accumulate, seen))
        monkeypatch.setattr(loop.learner, "clip", counted(loop.learner.clip, seen))
        with monkeypatch.context() as patch:
            patch.setattr("trainer.data.latent_cache.load_file", reader)
            watched.append(True)
            assert len(list(loop.steps())) == 3
            watched.clear()
        assert not reader.called
        assert [path for path in opened if not str(path).endswith(MODULES)] == []
        waits[micro_batch] = seen.count
    assert 0 < waits[1] == waits[8] <= 3 * 8


def counted(call, mode):
    def wrapper(*arguments):
        with mode:
            return call(*arguments)

    return wrapper


def test_micro_batches_are_of_one_shape(tmp_path):
    """Both kinds together; every sample once."""
    loop, seen = make_loop(tmp_path, 4, steps=1), []
    loop.learner.network.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    next(loop.steps())
    draws = [*loop.batches.unlabeled(0), *loop.batches.sensitive(0)]
    wide = sum(int(draw.sample.path.stem) % 2 for draw in draws)
    assert sum(shape[0] for shape in seen if shape[3] == 16) == wide
    assert sum(shape[0] for shape in seen) == N_UNLABELED + N_SENSITIVE
    assert len(seen) == -(-wide // 4) + -(-(8 - wide) // 4)


def test_sensitive_samples_run_again_on_what_is_there(tmp_path):
    loop = make_loop(tmp_path, 8)
    fed = loop._feed(0)
    for draws in (fed.sensitive[:1], [d for d in fed.sensitive if loop.denoiser.shape_of(d)[2] == 8]):
        found, wanted = fed.inputs(draws).inputs, loop.denoiser.inputs(draws, 0)
        assert torch.equal(found.noisy, wanted.noisy) and torch.equal(found.t, wanted.t)
        assert len(fed.inputs(draws).importance) == len(draws)


def test_the_next_step_is_made_in_a_thread_meanwhile():
    made, is_made = [], {k: threading.Event() for k in range(4)}

    def make(step):
        assert threading.current_thread() is not threading.main_thread()
        made.append(step)
        is_made[step].set()
        return step * 10

    feeder = Feeder(make, end=3)
    try:
        assert feeder.get(0) == 0
        assert is_made[1].wait(10)  # before it is asked for
        assert feeder.get(0) == 0  # once more, as after an fp16 overflow
        assert [feeder.get(k) for k in (1, 2)] == [10, 20]
        assert made == [0, 1, 2]
    finally:
        feeder.close()


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_asked_for():
    def make(step):
        raise OSError("the disk is gone")

    feeder = Feeder(make, end=3)
    with pytest.raises(OSError, match="the disk is gone"):
        feeder.get(0)
    feeder.close()


@pytest.mark.parametrize(("kind", "is_async"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_copies_are_pinned_and_asynchronous_on_cuda_only(tmp_path, kind, is_async):
    device, value = SimpleNamespace(type=kind), Mock()
    denoiser = Denoiser(None, torch.float32, None, None, 0, device, None, before=None)
    assert denoiser.pinned(value) is (value.pin_memory.return_value if is_async else value)
    denoiser.on_device(value)
    value.to.assert_called_once_with(device, non_blocking=is_async)


def test_a_containers_limit_counts(tmp_path):
    for name, text in {
        "memory.max": "3145728",
        "memory.current": "2097152",
        "memory.stat": "inactive_file 524288",
    }.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert free_ram_mib(tmp_path) == 1.5
    (tmp_path / "memory.max").write_text("max\n")
    assert free_ram_mib(tmp_path) > 1.5
