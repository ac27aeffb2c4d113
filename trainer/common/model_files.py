"""Names of model files and of models on the Hugging Face hub."""

import re
from pathlib import Path

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MODEL_FILES = (".safetensors", ".ckpt")
# parts of a diffusers folder that hold weights, and what the files are called
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def is_hub_id(base: str) -> bool:
    """Return whether a text that is no existing path can be a hub id.

    A model file's name, or a path below an existing folder, counts as a mistyped path.
    """
    path = Path(base)
    return bool(HUB_ID.fullmatch(base)) and path.suffix.lower() not in MODEL_FILES and not path.parent.exists()
