"""Choices of device, precision, optimizer and micro-batch, without the cards they are about."""

import sys
from types import SimpleNamespace

import pytest
import torch

from trainer.common.errors import UserError
from trainer.memory import devices
from trainer.training import optimizers


def card(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)


@pytest.mark.parametrize(
    ("capability", "name", "wanted"),
    [
        ((8, 6), "NVIDIA GeForce RTX 3060", "bf16"),
        ((7, 5), "NVIDIA GeForce RTX 2060", "fp16"),
        ((7, 5), "NVIDIA GeForce GTX 1660 SUPER", "fp32"),
        ((7, 5), "Quadro T1000 with Max-Q Design", "fp32"),
        ((7, 5), "Tesla T4", "fp16"),
        ((7, 5), "NVIDIA T400 4GB", "fp32"),
        ((6, 1), "NVIDIA GeForce GTX 1080", "fp16"),
    ],
)
def test_auto_precision_follows_the_card(monkeypatch, capability, name, wanted):
    card(monkeypatch, capability, name)
    assert devices.choose_precision("auto", torch.device("cuda")) == wanted
    assert devices.choose_precision("fp32", torch.device("cuda")) == "fp32"


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [("gfx1030", "fp16"), ("gfx1010", "fp16"), ("gfx906", "fp16"), ("gfx1100", "bf16"), ("gfx90a:sramecc+", "bf16")],
)
def test_amd_cards_use_bf16_where_it_is_native(monkeypatch, architecture, wanted):
    card(monkeypatch, (10, 3), "AMD Radeon")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=architecture))
    assert devices.choose_precision("auto", torch.device("cuda")) == wanted


def test_cards_that_train_together_compute_in_one_format():
    """Gradients of a card with bf16 and of one with fp16, which scales its loss, would not add up."""
    assert devices.common_precision(["bf16", "bf16"]) == "bf16"
    assert devices.common_precision(["bf16", "fp16"]) == "fp16"
    assert devices.common_precision(["bf16", "fp16", "fp32"]) == "fp32"


@pytest.mark.parametrize(("wanted", "budget"), [(None, 3000.0), (2.0, 2048.0), (4.0, 3000.0)])
def test_the_budget_is_never_more_than_what_is_free(monkeypatch, wanted, budget):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3000 * 2**20, 4096 * 2**20))
    assert devices.budget_mib(torch.device("cuda"), wanted) == budget


@pytest.mark.parametrize("kind", ["cpu", "mps"])
@pytest.mark.parametrize(("wanted", "budget"), [(None, float("inf")), (2.0, 2048.0), (4.0, 3000.0)])
def test_off_cuda_a_named_budget_counts_as_far_as_ram_is_free(monkeypatch, kind, wanted, budget):
    monkeypatch.setattr(devices, "free_ram_mib", lambda: 3000.0)
    assert devices.budget_mib(torch.device(kind), wanted) == budget


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_tells_of_memory(error, is_memory):
    assert devices.is_out_of_memory(error) == is_memory


def test_the_cpu_computes_in_fp32():
    assert devices.choose_precision("auto", torch.device("cpu")) == "fp32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a card")
def test_a_device_that_is_not_there():
    assert devices.choose_device("auto").type in ("cpu", "mps")
    with pytest.raises(UserError, match=r"cuda:3: torch sees 0 CUDA"):
        devices.choose_device("cuda:3")


def test_micro_batch_shrinks_to_what_the_card_bears():
    tried = []

    def attempt(n):
        tried.append(n)
        if n > 5:
            raise torch.OutOfMemoryError

    assert devices.largest_that_fits(16, attempt) == 4
    assert tried == [16, 8, 4]


def test_micro_batch_gives_up_when_one_sample_does_not_fit():
    def attempt(n):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        devices.largest_that_fits(16, attempt)


def make(name, warnings):
    parameters = [torch.nn.Parameter(torch.zeros(2**20))]
    return optimizers.make_optimizer(name, parameters, lr=0.1, weight_decay=0.0, warn=warnings.append)


def test_8_bit_adamw_is_bitsandbytes():
    warnings = []
    assert type(make("adamw8bit", warnings)).__module__.startswith("bitsandbytes")
    assert warnings == []


@pytest.mark.parametrize(("name", "package"), [("lion", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_optimizers_of_other_packages(monkeypatch, name, package):
    assert type(make(name, [])).__module__.startswith(package)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        make(name, [])


@pytest.mark.parametrize("fault", [None, RuntimeError("no CUDA setup\nlong advice")])
def test_missing_or_failing_bitsandbytes_costs_memory_not_the_run(monkeypatch, fault):
    if fault is None:
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # import raises
    else:

        def fail(*arguments):
            raise fault

        monkeypatch.setattr(optimizers, "_adamw8bit", fail)
    warnings = []
    assert type(make("adamw8bit", warnings)) is torch.optim.AdamW
    assert len(warnings) == 1
    assert "6 MiB more" in warnings[0]
    assert "long advice" not in warnings[0]


def test_peak_memory_is_at_least_what_is_held():
    held = torch.ones(64 * 2**20 // 4)
    assert devices.peak_mib(torch.device("cpu")) > held.numel() * 4 / 2**20
