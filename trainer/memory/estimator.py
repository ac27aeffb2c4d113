"""The peak memory of training, predicted before anything is loaded.

One micro-batch goes forward and backward through the real U-Net code on fake tensors, which have shapes and no data;
every storage is counted from its creation to its end. That takes a few seconds for Stable Diffusion 1.5.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..common.third_party import quiet
from ..models.networks import FullNetwork, LoraNetwork, attach_lora, train_whole
from ..models.noise_schedule import per_sample_error
from . import memory_plan
from .frozen_weights import FrozenLayer
from .memory_plan import DTYPES, MemoryPlan

MIB = 2**20
CONTEXT_MIB = 400.0  # what CUDA itself takes of a card before the first tensor; differs a little between drivers
# for each trained parameter; 8-bit: two bytes and block scales; prodigy: two moments, the start and its gradient sum
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.1, "lion": 4.0, "prodigy": 16.0}


@dataclass(frozen=True)
class Shape:
    """What decides a run's memory beside its memory plan."""

    unet: dict[str, Any]  # diffusers' config
    rank: int
    optimizer: str
    height_px: int
    width_px: int
    network: str = "lora"  # or "full": every weight is trained
    text_tokens: int = 77  # the U-Net reads, with begin and end


@dataclass(frozen=True)
class Estimate:
    """Peak memory of training, MiB. The parts add up to `total`."""

    weights: float  # frozen, on the card
    lora: float  # what is trained (LoRA, or the whole network), its gradient, optimizer states
    activations: float  # everything else at the worst moment: kept for the backward pass, or at work
    context: float = CONTEXT_MIB

    @property
    def total(self) -> float:
        return self.weights + self.lora + self.activations + self.context


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while the mode is on, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self.add(value)
        return out


def predict(shape: Shape, found: MemoryPlan) -> Estimate:
    """Predict the peak memory of one step, by part."""
    unet = build(shape, found)
    live = LiveStorages()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for tensor in _materialise(unet):
            live.add(tensor)
        held = live.now
        parameters = (FullNetwork(unet) if shape.network == "full" else LoraNetwork(unet)).parameters
        with live:
            _pass(unet, shape, found)
    trained = sum(p.numel() for p in parameters)
    one = 4 * trained / MIB  # the weights, or the gradient
    return Estimate(
        weights=held / MIB - one,
        lora=2 * one + OPTIMIZER_BYTES[shape.optimizer] * trained / MIB,
        activations=(live.peak - held) / MIB - one,
    )


def predict_vae(vae: dict[str, Any], height_px: int, width_px: int) -> tuple[float, float]:
    """Predict the peak MiB of the VAE in fp32, weights included: (encoding one image, decoding one).

    Args: vae: its config.
    """
    from diffusers import AutoencoderKL

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), quiet():
        model: Any = AutoencoderKL.from_config(vae)
        model.eval()
        passes = {
            model.encode: torch.empty(1, 3, height_px, width_px),
            model.decode: torch.empty(1, vae["latent_channels"], height_px // 8, width_px // 8),
        }
        encoding, decoding = (_peak_mib(model, call, value) for call, value in passes.items())
        return encoding, decoding


def _peak_mib(model: nn.Module, call: Callable[[Tensor], Any], value: Tensor) -> float:
    live = LiveStorages()
    for tensor in (*model.parameters(), value):
        live.add(tensor)
    with live:
        call(value)
    return live.peak / MIB


def build(shape: Shape, found: MemoryPlan) -> nn.Module:
    """Build the U-Net with LoRA and memory plan on the meta device, without data."""
    from diffusers import UNet2DConditionModel

    meta = torch.device("meta")
    with meta, quiet():
        unet = UNet2DConditionModel.from_config(shape.unet).to(found.load_dtype).requires_grad_(False).eval()
        if shape.network == "full":
            train_whole(unet)
        else:
            attach_lora(unet, rank=shape.rank, alpha=shape.rank, seed=0)
    plain = replace(found, attention="sdpa")  # xformers knows no fake tensors; it keeps what sdpa keeps
    if shape.network == "full":
        memory_plan.apply_plan_to_trained(unet, plain, device=meta)
    else:
        memory_plan.apply_plan(unet, plain, device=meta, offload_device=meta)
    return unet


def _materialise(unet: nn.Module) -> Iterator[Tensor]:
    """Put fake CPU tensors in place of the meta ones. Yields: those that occupy GPU memory."""
    for module in unet.modules():
        for name, old in module.named_parameters(recurse=False):
            new = nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad)
            module._parameters[name] = new
            yield new
        if isinstance(module, FrozenLayer):
            kept = module.weight
            kept.kept = torch.empty(kept.kept.shape, dtype=kept.kept.dtype)
            if kept.scale is not None:
                kept.scale = torch.empty(kept.scale.shape)
            if not kept.offloaded:
                yield from (t for t in (kept.kept, kept.scale) if t is not None)


def _pass(unet: nn.Module, shape: Shape, found: MemoryPlan) -> None:
    """Run one micro-batch forward and backward, as the denoiser does it."""
    n, dtype = found.micro_batch, DTYPES[found.precision]
    latents = torch.empty(n, 4, shape.height_px // 8, shape.width_px // 8)
    text = torch.empty(n, shape.text_tokens, shape.unet["cross_attention_dim"], dtype=dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        predicted = unet(latents.to(dtype), torch.zeros(n, dtype=torch.long), text).sample
    per_sample_error(predicted, latents).sum().backward()
