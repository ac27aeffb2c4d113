"""PU Checkpoint (from Model), PU Options: what the other nodes take; and the inputs that several nodes have."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import widgets
from .widgets import DEMO

Checkpoint = io.Custom("PU_CHECKPOINT")
Dataset, Options = io.Custom("PU_DATASET"), io.Custom("PU_OPTIONS")
MAIN = ("steps", "rank", "lr", "prior", "temperature", "objective", "seed", "name")
DATA = ("prompt", "sensitive_prompt")
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
        tooltip="From PU Checkpoint, or PU Checkpoint from Model: used instead of the widget.",
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


class PUCheckpointFromModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.schema(
            io,
            node_id="PUCheckpointFromModel",
            display_name="PU Checkpoint from Model",
            description="Lets the other PU nodes use a model of the graph: a merge, or one with LoRAs.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="A Stable Diffusion 1.x model; its LoRAs and merges become its weights."
                ),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
            ],
            outputs=[Checkpoint.Output("checkpoint_link", "checkpoint", tooltip="For the other PU nodes.")],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, vae: Any) -> io.NodeOutput:
        from . import model_file

        return io.NodeOutput(str(model_file.save(model, clip, vae)))


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
