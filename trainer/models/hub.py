"""Resolve --base to a path: on this disk, or downloaded from the Hugging Face hub."""

from pathlib import Path

from ..builtin import BUILTIN, MODEL
from ..common.errors import UserError
from ..common.model_files import WEIGHTS, is_hub_id


def resolve_model_path(base: str) -> Path:
    """Resolve --base: 'builtin', a path, or a hub id (owner/name), which is downloaded or taken from its cache.

    Raises: UserError for a path that is not there, or if the hub does not have it or cannot be reached.
    """
    if base == BUILTIN:
        return MODEL
    if Path(base).exists():
        return Path(base)
    if not is_hub_id(base):
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
