"""The trained network with its optimizer and accelerator. Knows nothing of risks or samples."""

from dataclasses import dataclass
from typing import Any

import torch

from ..config.train_config import TrainConfig
from ..data.job import TrainingJob
from ..memory import devices
from ..memory.memory_plan import MemoryPlan, apply_plan, apply_plan_to_trained
from ..models import base_model, lora_file
from ..models.networks import FullNetwork, LoraNetwork, TrainedNetwork, attach_lora, train_whole
from ..reporting.run_context import RunContext
from . import optimizers


@dataclass(frozen=True)
class TrainedModel:
    """What a run hands on after training, or during it: what pictures and report need."""

    job: TrainingJob  # with what was estimated in the place of auto
    network: TrainedNetwork
    device: torch.device
    loss_growth: dict[str, float]  # see TrainingLoop.loss_growth
    negative_steps: int = 0  # in which the normal risk was negative


def lora_network(job: TrainingJob, context: RunContext, plan: MemoryPlan) -> LoraNetwork:
    """Load the base model's U-Net and attach its LoRA, ready to learn on the context's device."""
    config, unet = job.config, base_model.load_unet(job.base, plan.load_dtype)
    network = attach_lora(unet, rank=config.rank, alpha=config.effective_alpha, seed=config.seed)
    if config.init_lora:
        scale = config.effective_alpha / config.rank
        start = lora_file.from_kohya(config.init_lora, network.pairs(), rank=config.rank, scale=scale)
        network.load_weights(start)
        if text := lora_file.text_encoder_modules(config.init_lora):
            context.warn(f"--init-lora: its {text} modules of the text encoder are left out: only the U-Net is trained")
    apply_plan(unet, plan, device=context.device, warn=context.warn)
    return network


def check_init_lora(job: TrainingJob) -> None:
    """Raise UserError if --init-lora does not fit, from names and shapes alone: before anything is encoded."""
    config = job.config
    if config.init_lora:
        network = attach_lora(
            base_model.empty_unet(job.base), rank=config.rank, alpha=config.effective_alpha, seed=config.seed
        )
        lora_file.from_kohya(config.init_lora, network.pairs(), rank=config.rank, scale=1.0)


def full_network(job: TrainingJob, context: RunContext, plan: MemoryPlan) -> FullNetwork:
    """Load the base model's U-Net, all of it ready to learn on the context's device."""
    network = train_whole(base_model.load_unet(job.base, torch.float32))
    apply_plan_to_trained(network.unet, plan, device=context.device, warn=context.warn)
    return network


class Learner:
    """Owns the trained weights and the optimizer that changes them."""

    def __init__(self, config: TrainConfig, network: TrainedNetwork, precision: str, context: RunContext) -> None:
        """Args: precision: of the arithmetic."""
        self.config, self.network = config, network
        devices.flush_denormals()
        is_alone = context.ranks.world == 1
        self.accelerator = optimizers.make_accelerator(precision, context.device, is_alone=is_alone)
        self.parameters = network.parameters
        plain = optimizers.make_optimizer(
            config.optimizer, self.parameters, lr=config.lr, weight_decay=config.weight_decay, warn=context.warn
        )
        self.optimizer = self.accelerator.prepare(plain)
        self.is_whole = True  # not while the weights move: memory may run out between two of them

    @property
    def can_rescale(self) -> bool:
        """Whether the fp16 scaler can fix an overflow, by a lower scale and a second try of the step."""
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
        """Return a nested dict of tensors and JSON values that `restore` takes back."""
        return {
            "weights": self.network.weights(),
            "optimizer": self.optimizer.state_dict()["state"],
            "groups": {str(i): _settings(group) for i, group in enumerate(self.optimizer.param_groups)},
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_weights(state["weights"])
        entries = {int(index): entry for index, entry in state["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        for i, group in enumerate(self.optimizer.param_groups):
            group.update(state["groups"][str(i)])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer group's settings without its parameters; prodigy keeps its step size here."""
    return {key: value for key, value in group.items() if key != "params"}
