"""Write a MODEL of the graph, with its CLIP and VAE, as a checkpoint that the trainer reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import comfy_host, result_cache

NAME = 12  # hexadecimal digits of a hash in a name


def save(model: Any, clip: Any, vae: Any) -> Path:
    """Save a model with its patches, such as LoRAs, in its weights. The file's name is a hash of its content.

    Raises: ValueError for what the trainer does not train.
    """
    import comfy.sd

    declared = _declared(model)
    comfy_host.say("saving the model for the trainer")
    folder = comfy_host.made_folder() / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / ".model.safetensors"
    try:
        comfy.sd.save_checkpoint(str(unfinished), model, clip, vae, metadata={}, extra_keys=declared)
        place = folder / f"model-{result_cache.sha256(unfinished)[:NAME]}.safetensors"
        if not place.exists():
            unfinished.replace(place)
    finally:
        unfinished.unlink(missing_ok=True)
    return place


def _declared(model: Any) -> dict[str, Any]:
    """Return the empty tensors by which a checkpoint tells how it samples: v_pred, ztsnr. Raises: ValueError."""
    import comfy.model_sampling as known
    import comfy.supported_models
    import torch

    config = model.model.model_config
    if type(config) is not comfy.supported_models.SD15 or config.unet_config.get("in_channels", 4) != 4:
        what = "an inpainting model" if type(config) is comfy.supported_models.SD15 else type(config).__name__
        raise ValueError(f"model: this is {what}; PU Unlearn trains on Stable Diffusion 1.x")
    sampling = model.get_model_object("model_sampling")
    kinds = set(type(sampling).__bases__) - {known.ModelSamplingDiscrete}
    was_v = model.model.model_type.name == "V_PREDICTION"
    if kinds not in ({known.EPS}, {known.V_PREDICTION}) or (was_v and kinds == {known.EPS}):
        named = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"model: its sampling was changed to {named}, which is not trained; take it before that node")
    found = {"v_pred": torch.tensor([])} if kinds == {known.V_PREDICTION} else {}
    return {**found, "ztsnr": torch.tensor([])} if getattr(sampling, "zsnr", False) else found
