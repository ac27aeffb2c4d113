"""PU Checkpoint, PU Dataset, PU Options: what the other nodes take; and the inputs that several nodes have."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from . import widgets
from .widgets import DEMO

Checkpoint = io.Custom("PU_CHECKPOINT")
Dataset, Options = io.Custom("PU_DATASET"), io.Custom("PU_OPTIONS")
MAIN = ("steps", "rank", "lr", "prior", "temperature", "objective", "seed", "name")
DATA = ("prompt", "sensitive_prompt")
NO_FOLDER = "[no subfolder in ComfyUI/input]"
LOOKS_SENSITIVE = ("sensitive", "unwanted", "forget", "remove", "nsfw")  # in a folder's name
UNLINKED = object()  # an input that is not there; ComfyUI's checks get None for one that is linked


def _rare() -> list[str]:
    """Return the settings of PU Options."""
    return [name for name in widgets.fields() if name not in (*MAIN, *DATA)]


def checkpoints() -> list[str]:
    """Return the options of every checkpoint widget."""
    import folder_paths

    return [DEMO, *folder_paths.get_filename_list("checkpoints")]


def checkpoint_link() -> Any:
    """Return the input for PU Checkpoint, which stands beside every checkpoint widget."""
    return Checkpoint.Input(
        "checkpoint_link",
        display_name="checkpoint",
        optional=True,
        tooltip="From PU Checkpoint: used instead of the widget.",
    )


def checkpoint_refusal(checkpoint: str | None, link: Any) -> bool | str:
    """Return True, or why a checkpoint widget is refused. None: its value comes from a link, and is checked later.

    ComfyUI repeats a refusal for each input that validate_inputs takes: so it takes no other.
    """
    from . import comfy_host

    if checkpoint is None or link is not UNLINKED:
        return True
    return comfy_host.refusal(lambda: comfy_host.checkpoint(checkpoint))


def checkpoint_stamp(checkpoint: str | None, link: Any = UNLINKED) -> str:
    """Return size and time of the file of a checkpoint widget; nothing if another node names it."""
    from . import comfy_host

    if checkpoint_refusal(checkpoint, link) is not True or checkpoint is None or link is not UNLINKED:
        return ""
    return comfy_host.stamp(comfy_host.checkpoint(checkpoint))


class PUCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.schema(
            io,
            node_id="PUCheckpoint",
            display_name="PU Checkpoint",
            description="Chooses the checkpoint once: to train on, and as a model to make pictures with.",
            inputs=[
                io.Combo.Input("checkpoint", options=checkpoints()[1:], tooltip="A Stable Diffusion 1.x model."),
            ],
            outputs=[
                Checkpoint.Output("checkpoint_link", "checkpoint", tooltip="For the other PU nodes."),
                io.Model.Output("model", "model", tooltip="For PU Apply LoRA, PU Compare and KSampler."),
                io.Clip.Output("clip", "clip", tooltip="Its text encoder."),
                io.Vae.Output("vae", "vae", tooltip="Its VAE."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None) -> bool | str:
        return checkpoint_refusal(checkpoint, UNLINKED)

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None) -> str:
        return checkpoint_stamp(checkpoint)

    @classmethod
    def execute(cls, checkpoint: str) -> io.NodeOutput:
        import nodes

        from . import comfy_host

        comfy_host.checkpoint(checkpoint)
        return io.NodeOutput(checkpoint, *nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint))


def _two_folders() -> tuple[list[str], str, str]:
    """Return the folders to choose from, and those that a fresh node has as unlabeled and as sensitive."""
    from .comfy_host import input_folders

    folders = input_folders() or [NO_FOLDER]
    named = [name for name in folders if any(word in name.lower() for word in LOOKS_SENSITIVE)]
    sensitive = (named or folders[1:] or folders)[0]
    return folders, next((name for name in folders if name != sensitive), sensitive), sensitive


def _folders_of(unlabeled: str | None, sensitive: str | None) -> list[Path]:
    """Return both folders. None: a link's value, which is checked later. Raises: ValueError with the widget's name."""
    from . import comfy_host

    named = {"unlabeled": unlabeled, "sensitive": sensitive}
    found = [comfy_host.input_folder(name, widget) for widget, name in named.items() if name is not None]
    if len(found) == 2 and found[0] == found[1]:
        raise ValueError(f"unlabeled and sensitive: both are {unlabeled!r}; choose two folders")
    return found


class PUDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folders, unlabeled, sensitive = _two_folders()
        return widgets.schema(
            io,
            node_id="PUDataset",
            display_name="PU Dataset",
            description="Two folders in ComfyUI/input: images to train on, and examples of unwanted images.",
            inputs=[
                io.Combo.Input(
                    "unlabeled",
                    options=folders,
                    default=unlabeled,
                    tooltip="Images to train on. Some may be sensitive.",
                ),
                io.Combo.Input(
                    "sensitive",
                    options=folders,
                    default=sensitive,
                    tooltip="Images like those to unlearn. Twenty are enough.",
                ),
                widgets.make(io, "prompt", default="a photo"),
                widgets.make(io, "sensitive_prompt"),
                io.Int.Input(
                    "resolution", default=512, min=64, max=1024, step=8, tooltip="Training resolution in pixels."
                ),
                io.Boolean.Input(
                    "skip_bad_images",
                    display_name=widgets.LABELS["skip_bad_images"],
                    default=False,
                    tooltip="Ignore images that cannot be read.",
                ),
            ],
            outputs=[
                Dataset.Output("dataset", "dataset", tooltip="For PU Unlearn."),
                io.Image.Output("sheet", "sheet", tooltip="The first images of both folders."),
                io.String.Output(
                    "counts", "counts", tooltip="How many images were found, and which were skipped and why."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, unlabeled: str | None, sensitive: str | None) -> bool | str:
        # ComfyUI 0.3 holds no combo of a V3 node against its options
        from . import comfy_host

        return comfy_host.refusal(lambda: _folders_of(unlabeled, sensitive))

    @classmethod
    def fingerprint_inputs(cls, unlabeled: str | None, sensitive: str | None, **_: Any) -> str | float:
        from . import comfy_host

        if None in (unlabeled, sensitive):
            return time.time()  # a link's value is not known here
        try:
            return comfy_host.fingerprint(*_folders_of(unlabeled, sensitive))
        except ValueError:
            return ""  # told by validate_inputs

    @classmethod
    def execute(
        cls,
        unlabeled: str,
        sensitive: str,
        prompt: str,
        sensitive_prompt: str,
        resolution: int,
        skip_bad_images: bool,
    ) -> io.NodeOutput:
        from . import comfy_host

        folders = _folders_of(unlabeled, sensitive)
        dataset = {
            "unlabeled": str(folders[0]),
            "sensitive": str(folders[1]),
            "prompt": prompt or None,
            "sensitive_prompt": sensitive_prompt or None,
            "resolution": resolution,
            "skip_bad_images": skip_bad_images,
        }
        with tempfile.TemporaryDirectory() as folder:
            sheet = Path(folder) / "sheet.png"
            settings = {**dataset, "base": "builtin", "sheet": str(sheet)}
            found = [e for e in comfy_host.events(["data"], settings) if e["event"] == "data"][-1]
            shown = comfy_host.image(comfy_host.opened(sheet))
        return io.NodeOutput(dataset, shown, found["text"])


class PUOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.schema(
            io,
            node_id="PUOptions",
            display_name="PU Options",
            description="Settings of PU Unlearn that are rarely changed.",
            inputs=[widgets.make(io, name) for name in _rare()],
            outputs=[Options.Output("options", "options", tooltip="For PU Unlearn and PU Plan.")],
        )

    @classmethod
    def execute(cls, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(widgets.given(options))
