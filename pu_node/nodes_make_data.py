"""PU Make Data: generate training images with the checkpoint itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from . import launch, result_cache, widgets
from .nodes_input import UNLINKED, Dataset, checkpoint_link, checkpoint_refusal, checkpoint_stamp, checkpoints

SAMPLERS = ("ddim", "pndm", "dpm++", "euler_a")


class PUMakeData(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.schema(
            io,
            node_id="PUMakeData",
            display_name="PU Make Data",
            description="Generates normal images with sensitive ones hidden among them, and sensitive examples.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=checkpoints(), tooltip="Stable Diffusion 1.x, or the built-in demo."
                ),
                io.String.Input(
                    "unlabeled_prompt", default="", tooltip="Prompt of the normal images; empty: the demo's own."
                ),
                io.Int.Input("n_unlabeled", default=64, min=1, max=10_000, tooltip="Number of normal images."),
                io.String.Input(
                    "contaminate_prompt",
                    default="",
                    tooltip="Prompt of the sensitive images hidden among them; empty: the demo's own.",
                ),
                io.Int.Input(
                    "n_contaminate",
                    default=16,
                    min=0,
                    max=10_000,
                    tooltip="Number of hidden sensitive images, in addition.",
                ),
                io.String.Input(
                    "sensitive_prompt",
                    default="",
                    tooltip="Prompt of the sensitive examples; empty: that of the hidden ones.",
                ),
                io.Int.Input(
                    "n_sensitive",
                    default=20,
                    min=3,
                    max=10_000,
                    tooltip="Number of sensitive examples. Twenty are enough.",
                ),
                io.String.Input("negative_prompt", default="", tooltip="Negative prompt of all images."),
                io.Int.Input(
                    "resolution", default=512, min=64, max=1024, step=8, tooltip="Pixels; the demo always uses 64."
                ),
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Number of sampler steps."),
                io.Float.Input(
                    "guidance",
                    default=7.5,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance scale; the demo always uses 3.",
                ),
                io.Combo.Input(
                    "sampler", options=list(SAMPLERS), default="ddim", tooltip="Sampler of the diffusers library."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=9_999,
                    control_after_generate="fixed",
                    tooltip="Different seeds give different images.",
                ),
                io.String.Input(
                    "folder",
                    default="pu-data",
                    tooltip="Subfolder of ComfyUI/input. Where it holds other images, the next free name is taken.",
                ),
                checkpoint_link(),
            ],
            outputs=[
                Dataset.Output("dataset", "dataset", tooltip="For PU Unlearn, with the prompt of the normal images."),
                io.Image.Output("sheet", "sheet", tooltip="The first images of each kind."),
                io.String.Output("report", "report", tooltip="Number of images made, and where the report page is."),
                io.Float.Output("prior", "prior", tooltip="Share of hidden images, for PU Unlearn."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, checkpoint_link=UNLINKED) -> bool | str:
        return checkpoint_refusal(checkpoint, checkpoint_link)

    @classmethod
    def fingerprint_inputs(cls, checkpoint, folder, checkpoint_link=UNLINKED, **_) -> str:
        """Images may have been removed from the folder."""
        from . import comfy_host

        stamp = checkpoint_stamp(checkpoint, checkpoint_link)
        if folder is None or comfy_host.refusal(lambda: comfy_host.new_input_folder(folder)) is not True:
            return stamp
        here = [path for path in _family(folder) if path.is_dir()]
        return f"{stamp} {comfy_host.fingerprint(*here)}"

    @classmethod
    def execute(cls, checkpoint, folder, resolution, guidance, checkpoint_link=None, **settings: Any) -> io.NodeOutput:
        from . import comfy_host

        base = comfy_host.checkpoint(checkpoint_link or checkpoint)
        settings = {name: None if value == "" else value for name, value in settings.items()}
        if base is not None:  # the demo has a fixed resolution and guidance
            settings |= {"base": str(base), "resolution": resolution, "guidance": guidance}
        comfy_host.make_room()
        done = _make(folder, settings)
        dataset = {
            **{name: done[name] for name in ("unlabeled", "sensitive", "prompt", "resolution")},
            "sensitive_prompt": None,
            "skip_bad_images": False,
        }
        if base is None:
            dataset["base"] = "builtin"  # so that the demo trains on these instead of its own
        shown = comfy_host.image(comfy_host.opened(done["sheet"]))
        text = f"The images are in ComfyUI/input/{Path(done['sheet']).parent.name}\n{comfy_host.in_words(done['text'])}"
        return io.NodeOutput(dataset, shown, text, done["prior"])


def _make(name: str, settings: Mapping[str, Any]) -> launch.Event:
    """Make the images in the folder that has them from the same settings, or in a free one. Return the last event."""
    from . import comfy_host

    known = _Folders(comfy_host.output_root() / "made-data.json", settings)
    folder = known.get(name) or _free(name)
    known.put(name, folder)
    try:
        return comfy_host.answer("make-data", {**settings, "out": str(folder)})
    except launch.TrainerError as error:
        if error.kind != "occupied":  # by more of these images than are asked for now, or by images of other origin
            raise
    folder = _free(name)
    known.put(name, folder)
    return comfy_host.answer("make-data", {**settings, "out": str(folder)})


class _Folders:
    """A JSON file: name and settings -> the folder whose images were made from them."""

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        said = {key: value for key, value in settings.items() if not key.startswith("n_")}  # more are added to a folder
        self.file = file
        self.key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def get(self, name: str) -> Path | None:
        found = self._read().get(f"{name} {self.key}")
        return Path(found) if found and Path(found).is_dir() else None

    def put(self, name: str, folder: Path) -> None:
        result_cache.write(self.file, json.dumps({**self._read(), f"{name} {self.key}": str(folder)}, indent=1))

    def _read(self) -> dict[str, str]:
        return result_cache.read_json(self.file)


def _family(name: str) -> list[Path]:
    """Return the folders name, name-2, name-3, … as far as there are some, and the first that is not there."""
    from . import comfy_host

    found = [comfy_host.new_input_folder(name)]
    while found[-1].exists():
        found.append(comfy_host.new_input_folder(f"{name.strip()}-{len(found) + 1}"))
    return found


def _free(name: str) -> Path:
    """Return the first folder of that name, or with -2, -3, … after it, that is not there or empty."""
    return next(path for path in _family(name) if not path.exists() or not any(path.iterdir()))
