"""PU Evaluate: measure how often the model generates sensitive images without and with the LoRA."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from . import run_numbers, widgets
from .nodes_apply import FROM_INPUT
from .nodes_input import UNLINKED, checkpoint_link, checkpoint_refusal, checkpoint_stamp, checkpoints

NO_LABELED = "[none]"
KINDS = ("before", "after")
SHOWN = 64  # pictures of each kind that are given out: five thousand would fill the memory


class PUEvaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import folder_paths

        from .comfy_host import input_folders

        return widgets.schema(
            io,
            node_id="PUEvaluate",
            display_name="PU Evaluate",
            description="Generates the same seeds without and with a LoRA and measures how many are not sensitive.",
            is_output_node=True,
            inputs=[
                io.Combo.Input("checkpoint", options=checkpoints(), tooltip="The model that the LoRA was trained on."),
                io.String.Input("path", optional=True, force_input=True, tooltip="From PU Unlearn."),
                io.Combo.Input(
                    "lora_name",
                    options=[FROM_INPUT, *folder_paths.get_filename_list("loras")],
                    default=FROM_INPUT,
                    tooltip="A LoRA file, used instead of the input.",
                ),
                io.String.Input(
                    "prompt", default="a photo of a digit", tooltip="Prompt of the pictures before and after."
                ),
                io.Int.Input(
                    "pictures",
                    default=100,
                    min=2,
                    max=5000,
                    tooltip="Number of pictures before, and the same number after.",
                ),
                io.Int.Input(
                    "resolution", default=64, min=64, max=1024, step=8, tooltip="Pixels: 512 for most checkpoints."
                ),
                io.Combo.Input(
                    "labeled",
                    options=[NO_LABELED, *input_folders()],
                    default=NO_LABELED,
                    tooltip="A folder with normal/ and sensitive/, to train the classifier. The demo needs none.",
                ),
                io.String.Input(
                    "retain_prompts", default="", tooltip="Prompts whose pictures should not change, separated by |."
                ),
                checkpoint_link(),
            ],
            outputs=[
                io.Image.Output(
                    "before_after",
                    "before / after",
                    tooltip="The first seeds: upper row without, lower row with the LoRA.",
                ),
                io.String.Output(
                    "report", "report", tooltip="Rates, significance tests, drift, and where the report page is."
                ),
                io.Float.Output(
                    "rate_before", "rate before", tooltip="Share of non-sensitive pictures; -1: no classifier."
                ),
                io.Float.Output("rate_after", "rate after", tooltip="The same share with the LoRA."),
                *_more_outputs(),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, checkpoint_link=UNLINKED) -> bool | str:
        return checkpoint_refusal(checkpoint, checkpoint_link)

    @classmethod
    def fingerprint_inputs(cls, checkpoint, lora_name, labeled, checkpoint_link=UNLINKED, **_) -> str | float:
        from . import comfy_host

        if None in (lora_name, labeled):
            return time.time()  # a link's value is not known here
        try:
            lora = "" if lora_name == FROM_INPUT else comfy_host.stamp(comfy_host.lora_file(lora_name))
            images = "" if labeled == NO_LABELED else comfy_host.fingerprint(comfy_host.input_folder(labeled))
        except ValueError:
            return ""  # told by execute
        return f"{checkpoint_stamp(checkpoint, checkpoint_link)} {lora} {images}"

    @classmethod
    def execute(
        cls,
        checkpoint,
        lora_name,
        prompt,
        pictures,
        resolution,
        labeled,
        retain_prompts,
        path=None,
        checkpoint_link=None,
    ) -> io.NodeOutput:
        from . import comfy_host

        if lora_name == FROM_INPUT and path is None:
            raise ValueError("path: connect PU Unlearn, or choose a file as lora_name")
        base = comfy_host.checkpoint(checkpoint_link or checkpoint)
        lora = comfy_host.lora_file(path if lora_name == FROM_INPUT else lora_name)
        settings = {
            "base": None if base is None else str(base),
            "lora": str(lora),
            "prompt": prompt or None,
            "n": pictures,
            "resolution": resolution,
            "labeled": None if labeled == NO_LABELED else str(comfy_host.input_folder(labeled, "labeled")),
            "retain_prompts": retain_prompts or None,
            "out": str(comfy_host.output_root() / f"{lora.stem}-evaluate"),
        }
        comfy_host.make_room()
        found = comfy_host.answer("evaluate", settings)
        return io.NodeOutput(
            comfy_host.image(comfy_host.opened(found["picture"])),
            comfy_host.in_words(found["text"]),
            *(_share(found, kind, "rate") for kind in KINDS),
            *(_share(found, kind, end) for kind in KINDS for end in ("low", "high")),
            *(_pictures(Path(settings["out"]) / "pictures" / kind, pictures) for kind in KINDS),
        )


def _more_outputs() -> list[Any]:
    """Return the outputs beside picture, report and rates."""
    shown = f"one by one, up to {SHOWN}."
    return [
        io.Float.Output("before_low", "before: low", tooltip="Lower end of the 95 % interval of rate before."),
        io.Float.Output("before_high", "before: high", tooltip="Upper end of that interval."),
        io.Float.Output("after_low", "after: low", tooltip="Lower end of the 95 % interval of rate after."),
        io.Float.Output("after_high", "after: high", tooltip="Upper end of that interval."),
        io.Image.Output("before", "before", tooltip=f"The pictures without the LoRA, {shown}"),
        io.Image.Output("after", "after", tooltip=f"The pictures of the same seeds with the LoRA, {shown}"),
    ]


def _share(found: Mapping[str, Any], kind: str, name: str) -> float:
    return found[kind][name] if kind in found else run_numbers.UNKNOWN


def _pictures(folder: Path, count: int) -> Any:
    """Return the first pictures in a folder as an IMAGE: no more of them than fit into memory."""
    from . import comfy_host

    return comfy_host.images(comfy_host.opened(path) for path in sorted(folder.glob("*.png"))[: min(count, SHOWN)])
