"""What a run hands on after training, or during it."""

from dataclasses import dataclass

import torch

from ..data.job import TrainingJob
from ..models.networks import TrainedNetwork


@dataclass(frozen=True)
class TrainedModel:
    """What pictures and report need."""

    job: TrainingJob  # with what was estimated in the place of auto
    network: TrainedNetwork
    device: torch.device
    loss_growth: dict[str, float]  # see TrainingLoop.loss_growth
    negative_steps: int = 0  # in which the normal risk was negative
