"""What a run is about (TrainingJob), where and for whom it runs (RunContext), and what comes out (TrainedModel)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..config.train_config import TrainConfig
from ..data.folders import Folders
from ..models.base_model import Base

Emit = Callable[..., None]  # emit(event, **fields)


@dataclass(frozen=True)
class TrainedModel:
    """What pictures and report need after training."""

    config: TrainConfig  # with what was estimated in the place of auto
    unet: nn.Module  # with its LoRA
    device: torch.device
    base: Base
    folders: Folders
    rises: dict[str, float]  # see Loop.rises


def picture_prompt(config: TrainConfig, folders: Folders) -> str:
    """What pictures are made with: --prompt, or the first caption where every image has its own."""
    return config.prompt or folders.unlabeled[0].caption
