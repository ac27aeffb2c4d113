"""What is learned: settings, base model and images, which travel together through a run."""

from dataclasses import dataclass

from ..config.train_config import TrainConfig
from ..models.base_model import Base
from .captions import with_affixes
from .folders import Folders


@dataclass(frozen=True)
class TrainingJob:
    """What is learned. Replaced, never changed: an estimated prior makes a new job."""

    config: TrainConfig
    base: Base
    folders: Folders

    @property
    def picture_prompt(self) -> str:
        """The prompt of the run's own pictures: --prompt, or the first caption where every image has its own."""
        config = self.config
        if config.prompt:
            return with_affixes(config.prompt, config.caption_prefix, config.caption_suffix)
        return self.folders.unlabeled[0].own_caption
