"""PU Audit: find sensitive images in the unlabeled folder before training."""

from __future__ import annotations

from comfy_api.latest import io

from . import run_numbers, widgets
from .nodes_input import UNLINKED, Dataset, checkpoint_link, checkpoint_refusal, checkpoint_stamp, checkpoints


class PUAudit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.schema(
            io,
            node_id="PUAudit",
            display_name="PU Audit",
            description="Ranks unlabeled images by how likely they are sensitive, and estimates how many are.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=checkpoints(), tooltip="Stable Diffusion 1.x, or the built-in demo."
                ),
                Dataset.Input("dataset", optional=True, tooltip="From PU Dataset. The demo has its own."),
                io.Int.Input("top", default=48, min=1, max=400, tooltip="Number of images on the sheet."),
                checkpoint_link(),
            ],
            outputs=[
                io.Image.Output("sheet", "sheet", tooltip="The unlabeled images most likely to be sensitive."),
                io.String.Output(
                    "report", "report", tooltip="The estimate, near-duplicates, and where the full ranking is."
                ),
                io.Float.Output("prior", "prior", tooltip="Estimated share of sensitive images, for PU Unlearn."),
                io.Float.Output("prior_low", "prior low", tooltip="Lower end of the prior's 95 % interval."),
                io.Float.Output("prior_high", "prior high", tooltip="Upper end of that interval."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, checkpoint_link=UNLINKED) -> bool | str:
        return checkpoint_refusal(checkpoint, checkpoint_link)

    @classmethod
    def fingerprint_inputs(cls, checkpoint, checkpoint_link=UNLINKED, **_) -> str:
        return checkpoint_stamp(checkpoint, checkpoint_link)

    @classmethod
    def execute(cls, checkpoint, top, dataset=None, checkpoint_link=None) -> io.NodeOutput:
        from . import comfy_host

        base = comfy_host.checkpoint(checkpoint_link or checkpoint)
        settings = {"top": top, "name": "pu", "output_dir": str(comfy_host.output_root())}
        settings |= comfy_host.with_dataset(base, dataset)
        comfy_host.make_room()
        found = comfy_host.answer("audit", settings)
        return io.NodeOutput(
            comfy_host.image(comfy_host.opened(found["sheet"])),
            comfy_host.in_words(found["text"]),
            found["prior"],
            *run_numbers.interval(found["text"]),
        )
