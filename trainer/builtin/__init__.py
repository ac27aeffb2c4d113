"""The built-in default: a miniature Stable Diffusion 1.x and real handwritten digits. Everything runs offline."""

from pathlib import Path

BUILTIN = "builtin"  # what --base calls it
HERE = Path(__file__).parent
MODEL = HERE / "model"
CONFIG = HERE / "config.toml"
CLASSIFIER = HERE / "classifier.safetensors"
