"""PU Make Data: generate training images with the checkpoint itself."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .nodes_train import CATEGORY, Dataset, checkpoints

SAMPLERS = ("ddim", "pndm", "dpm++", "euler_a")


class PUMakeData(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PUMakeData",
            display_name="PU Make Data",
            category=CATEGORY,
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
                io.Int.Input("seed", default=0, min=0, max=9_999, tooltip="Different seeds give different images."),
                io.String.Input(
                    "folder", default="pu-data", tooltip="Subfolder of ComfyUI/input, new or to be added to."
                ),
            ],
            outputs=[
                Dataset.Output("dataset", "dataset", tooltip="For PU Unlearn, with the prompt of the normal images."),
                io.Image.Output("sheet", "sheet", tooltip="The first images of each kind."),
                io.String.Output("report", "report", tooltip="Number of images made, and where the report page is."),
                io.Float.Output("prior", "prior", tooltip="Share of hidden images, for PU Unlearn."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, folder) -> bool | str:
        from . import comfy_host

        return comfy_host.refusal(lambda: (comfy_host.checkpoint(checkpoint), comfy_host.new_input_folder(folder)))

    @classmethod
    def execute(cls, checkpoint, folder, resolution, guidance, **settings: Any) -> io.NodeOutput:
        from . import comfy_host

        base = comfy_host.checkpoint(checkpoint)
        settings = {name: None if value == "" else value for name, value in settings.items()}
        settings |= {"out": str(comfy_host.new_input_folder(folder))}
        if base is not None:  # the demo has a fixed resolution and guidance
            settings |= {"base": str(base), "resolution": resolution, "guidance": guidance}
        comfy_host.make_room()
        done = comfy_host.answer("make-data", settings)
        dataset = {
            **{name: done[name] for name in ("unlabeled", "sensitive", "prompt", "resolution")},
            "sensitive_prompt": None,
            "skip_bad_images": False,
        }
        if base is None:
            dataset["base"] = "builtin"  # so that the demo trains on these instead of its own
        return io.NodeOutput(dataset, comfy_host.image(comfy_host.opened(done["sheet"])), done["text"], done["prior"])
