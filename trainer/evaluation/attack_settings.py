"""What both attacks on an unlearned model are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.train_config import TrainConfig


@dataclass(frozen=True)
class AttackSettings:
    """How to bring back what was unlearned, and how to look whether it came back."""

    sensitive: Path  # folder of the images to bring back
    prompt: str
    seeds: Sequence[int]  # of the pictures
    relearn: TrainConfig  # of the relearning: steps, lr, resolution, sampler
    invert_steps: int
