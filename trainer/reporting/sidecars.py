"""Files beside a LoRA: a model card, a preview and notes, under the names that UIs and LoRA managers look for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..common.files import replacing, write_text
from ..common.model_files import is_hub_id
from .html import TEMPLATES

PREVIEW_PX = 512
TAGS = ["stable-diffusion", "text-to-image", "lora", "unlearning", "positive-unlabeled"]


def write_card(path: Path, *, base: str | None, rates: Mapping[str, float], **values: Any) -> None:
    """Write a model card as the Hugging Face hub reads it.

    Args:
        base: the model trained on; named where it is on the hub.
        rates: non-sensitive rates by what they are of; figures in the card's data.
        values: what templates/model_card.md shows.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    about: dict[str, Any] = {"task_type": "text-to-image", "dataset_type": "generated", "dataset_name": "pictures"}
    about["metric_type"] = "non-sensitive-rate"
    results = [
        EvalResult(**about, metric_name=f"non-sensitive rate {kind}", metric_value=rate) for kind, rate in rates.items()
    ]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=TAGS,
        base_model=base if base and is_hub_id(base) else None,
        model_name=values["name"] if results else None,
        eval_results=results or None,
    )
    template = (TEMPLATES / "model_card.md").read_text(encoding="utf-8")
    write_text(path, str(ModelCard.from_template(data, template_str=template, **values)))


def write_notes(path: Path, description: str) -> None:
    """Write the notes of a LoRA as A1111 and Forge read them, and managers for ComfyUI."""
    notes = {"description": description, "sd version": "SD1", "activation text": "", "preferred weight": 1.0}
    notes |= {"negative text": "", "notes": ""}
    write_text(path, json.dumps(notes, indent=4, ensure_ascii=False) + "\n")


def write_preview(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Write a preview: the first four pictures, two by two, or the first alone if they are fewer."""
    side = 1 if len(pictures) < 4 else 2
    sheet = Image.new("RGB", (PREVIEW_PX, PREVIEW_PX))
    tile = PREVIEW_PX // side
    for i, picture in enumerate(pictures[: side * side]):
        sheet.paste(picture.resize((tile, tile), Image.Resampling.BICUBIC), (i % side * tile, i // side * tile))
    with replacing(path) as temporary:
        sheet.save(temporary, "png")
