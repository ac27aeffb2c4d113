"""Settings that both attacks on an unlearned model share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.train_config import TrainConfig


@dataclass(frozen=True)
class AttackSettings:
    """What to bring back, with how much effort, and which pictures show whether it came back."""

    sensitive: Path  # folder of the images to bring back
    prompt: str
    seeds: Sequence[int]  # of the pictures
    relearn: TrainConfig  # of the relearning: steps, lr, resolution, sampler
    invert_steps: int
