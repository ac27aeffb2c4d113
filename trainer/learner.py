"""What learns: a U-Net, the optimizer and the accelerator. Knows nothing of risks or samples."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from . import full, lora, lora_file, memory, model
from .config import TrainConfig
from .model import Base
from .switches import Switches, set_up, set_up_whole


def with_lora(
    config: TrainConfig, base: Base, switches: Switches, device: torch.device, warn: Callable[[str], None]
) -> nn.Module:
    """The base model's U-Net with its LoRA, ready to learn on device."""
    unet = model.load_unet(base, switches.load_dtype)
    lora.attach(unet, rank=config.rank, alpha=config.effective_alpha, seed=config.seed)
    if config.init_lora:
        scale = config.effective_alpha / config.rank
        start = lora_file.from_kohya(config.init_lora, lora.pairs(unet), rank=config.rank, scale=scale)
        lora.load_weights(unet, start)
    set_up(unet, switches, device=device, say=warn)
    return unet


def whole(base: Base, switches: Switches, device: torch.device, warn: Callable[[str], None]) -> nn.Module:
    """The base model's U-Net, all of it ready to learn on device."""
    unet = model.load_unet(base, torch.float32)
    full.attach(unet)
    set_up_whole(unet, switches, device=device, say=warn)
    return unet


class Learner:
    """Owns the trained weights and what moves them."""

    def __init__(
        self,
        config: TrainConfig,
        unet: nn.Module,
        network: ModuleType,
        *,
        precision: str,
        device: torch.device,
        is_alone: bool,
        warn: Callable[[str], None],
    ) -> None:
        """Args: network: `lora` or `full`: which of unet's weights are trained. precision: of the arithmetic."""
        self.config, self.unet, self.network = config, unet, network
        memory.flush_denormals()
        self.accelerator = memory.make_accelerator(precision, device, is_alone=is_alone)
        self.parameters = network.parameters(unet)
        plain = memory.make_optimizer(
            config.optimizer, self.parameters, lr=config.lr, weight_decay=config.weight_decay, warn=warn
        )
        self.optimizer = self.accelerator.prepare(plain)
        self.is_whole = True  # not while the weights move: memory may run out between two of them

    @property
    def can_rescale(self) -> bool:
        """Whether an overflow is the fp16 scaler's to mend: it lowers its scale and the step is done again."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def clip(self) -> float:
        """Clip the gradient to --max-grad-norm. Returns: its norm before."""
        return float(self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm))

    def step(self, lr: float) -> bool:
        """Move the weights along their gradient and clear it. Returns: False where fp16 overflowed: nothing moved."""
        self.is_whole = False
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.is_whole = True
        self.optimizer.zero_grad()
        return not self.accelerator.optimizer_step_was_skipped

    def state(self) -> dict[str, Any]:
        """Nested dict of tensors and JSON values that `restore` takes back."""
        return {
            "weights": self.network.weights(self.unet),
            "optimizer": self.optimizer.state_dict()["state"],
            "groups": {str(i): _settings(group) for i, group in enumerate(self.optimizer.param_groups)},
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_weights(self.unet, state["weights"])
        entries = {int(index): entry for index, entry in state["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        for i, group in enumerate(self.optimizer.param_groups):
            group.update(state["groups"][str(i)])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer keeps beside its parameters; prodigy's step size lives here."""
    return {key: value for key, value in group.items() if key != "params"}


def lr_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Learning rate of a step (from 0) as a share of the highest: linear rise, then a cosine to nearly 0 at the end."""
    warmup = min(warmup_steps, steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
