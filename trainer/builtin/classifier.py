"""The classifier of the built-in digits: a small CNN, for rates and Fréchet distances."""

import itertools

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from . import CLASSIFIER

FEATURES = 64


class DigitClassifier(nn.Module):
    """[n, 1, 64, 64] in -1..1 -> (logits [n, 10], features [n, 64])."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 24, 48, 64)
        layers = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
        self.trunk = nn.Sequential(*layers)
        self.embed = nn.Linear(widths[-1] * 16, FEATURES)
        self.head = nn.Linear(FEATURES, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        small = F.avg_pool2d(images, 2)  # the digits were 28 px: half the model's resolution loses nothing
        features = self.embed(self.trunk(small).flatten(1)).relu()
        return self.head(F.dropout(features, 0.3, self.training)), features


def load() -> DigitClassifier:
    model = DigitClassifier()
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(CLASSIFIER).items()})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def classify(model: DigitClassifier, images: Tensor, batch: int = 250) -> tuple[Tensor, Tensor]:
    """Classify digits. Args: images: [n, 64, 64] uint8. Returns: (digit [n] int64, features [n, 64] fp32)."""
    parts = [model((chunk.float() / 127.5 - 1)[:, None]) for chunk in images.split(batch)]
    return torch.cat([p[0] for p in parts]).argmax(1), torch.cat([p[1] for p in parts])
