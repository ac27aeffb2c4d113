"""--base as a path: here, or from the Hugging Face hub."""

import re
from pathlib import Path

from .builtin import BUILTIN, MODEL
from .errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# parts of a diffusers folder that hold weights, and what the files are called
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def find(base: str) -> Path:
    """--base as a path on this disk: 'builtin', a path, or a hub id (owner/name), which is downloaded or in its cache.

    Raises: UserError if the hub does not have it or cannot be reached.
    """
    if base == BUILTIN:
        return MODEL
    if Path(base).exists() or not HUB_ID.fullmatch(base):
        return Path(base)
    from huggingface_hub import snapshot_download

    def download(suffix: str) -> Path:
        weights = [f"{part}/{stem}{suffix}.safetensors" for part, stem in WEIGHTS.items()]
        patterns = ["model_index.json", "*/config.json", "scheduler/*", "tokenizer/*", *weights]
        return Path(snapshot_download(base, allow_patterns=patterns))

    try:
        folder = download("")
        has_all = all((folder / part / f"{stem}.safetensors").exists() for part, stem in WEIGHTS.items())
        return folder if has_all else download(".fp16")
    except Exception as error:  # requests, httpx and the hub each have their own
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--base: no path {base} here, and the hub does not give {base} ({reason})") from None
