"""--base as a path: here, or from the Hugging Face hub."""

import re
from pathlib import Path

from .builtin import BUILTIN, MODEL
from .errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
MODEL_FILES = (".safetensors", ".ckpt")
# parts of a diffusers folder that hold weights, and what the files are called
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def is_id(base: str) -> bool:
    """Can what is no path here be a hub id? A file's name, or one in a folder that is here, is a mistyped path."""
    path = Path(base)
    return bool(HUB_ID.fullmatch(base)) and path.suffix.lower() not in MODEL_FILES and not path.parent.exists()


def find(base: str) -> Path:
    """--base as a path on this disk: 'builtin', a path, or a hub id (owner/name), which is downloaded or in its cache.

    Raises: UserError for a path that is not there, or if the hub does not have it or cannot be reached.
    """
    if base == BUILTIN:
        return MODEL
    if Path(base).exists():
        return Path(base)
    if not is_id(base):
        raise UserError(f"--base: {base} does not exist (a model on the hub is called owner/name)")
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
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"--base: no path {base} here, and the hub does not give {base} ({reason})") from None
