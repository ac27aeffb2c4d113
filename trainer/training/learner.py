"""What learns: a U-Net, the optimizer and the accelerator. Knows nothing of risks or samples."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..config.train_config import TrainConfig
from ..memory import devices
from ..memory.memory_plan import MemoryPlan, apply_plan, apply_plan_to_trained
from ..models import base_model, full_network, lora, lora_file
from ..models.base_model import Base
from . import optimizers


def with_lora(
    config: TrainConfig, base: Base, switches: MemoryPlan, device: torch.device, warn: Callable[[str], None]
) -> nn.Module:
    """The base model's U-Net with its LoRA, ready to learn on device."""
    unet = base_model.load_unet(base, switches.load_dtype)
    lora.attach(unet, rank=config.rank, alpha=config.effective_alpha, seed=config.seed)
    if config.init_lora:
        scale = config.effective_alpha / config.rank
        start = lora_file.from_kohya(config.init_lora, lora.pairs(unet), rank=config.rank, scale=scale)
        lora.load_weights(unet, start)
    apply_plan(unet, switches, device=device, say=warn)
    return unet


def whole(base: Base, switches: MemoryPlan, device: torch.device, warn: Callable[[str], None]) -> nn.Module:
    """The base model's U-Net, all of it ready to learn on device."""
    unet = base_model.load_unet(base, torch.float32)
    full_network.attach(unet)
    apply_plan_to_trained(unet, switches, device=device, say=warn)
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
        devices.flush_denormals()
        self.accelerator = optimizers.make_accelerator(precision, device, is_alone=is_alone)
        self.parameters = network.parameters(unet)
        plain = optimizers.make_optimizer(
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
