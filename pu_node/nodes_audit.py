"""PU Audit: find sensitive images in the unlabeled folder before training."""

from __future__ import annotations

from comfy_api.latest import io

from .nodes_train import CATEGORY, Dataset, checkpoints


class PUAudit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PUAudit",
            display_name="PU Audit",
            category=CATEGORY,
            description="Ranks unlabeled images by how likely they are sensitive, and estimates how many are.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "checkpoint", options=checkpoints(), tooltip="Stable Diffusion 1.x, or the built-in demo."
                ),
                Dataset.Input("dataset", optional=True, tooltip="From PU Dataset. The demo has its own."),
                io.Int.Input("top", default=48, min=1, max=400, tooltip="Number of images on the sheet."),
            ],
            outputs=[
                io.Image.Output("sheet", "sheet", tooltip="The unlabeled images most likely to be sensitive."),
                io.String.Output(
                    "report", "report", tooltip="The estimate, near-duplicates, and where the full ranking is."
                ),
                io.Float.Output("prior", "prior", tooltip="Estimated share of sensitive images, for PU Unlearn."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint) -> bool | str:
        from . import comfy_host

        return comfy_host.refusal(lambda: comfy_host.checkpoint(checkpoint))

    @classmethod
    def execute(cls, checkpoint, top, dataset=None) -> io.NodeOutput:
        from . import comfy_host

        base = comfy_host.checkpoint(checkpoint)
        if base is not None and dataset is None:
            raise ValueError("dataset: connect a PU Dataset; only the built-in demo has its own images")
        settings = {"top": top, "name": "pu", "output_dir": str(comfy_host.output_root())}
        if base is not None:
            settings |= {**dataset, "base": str(base)}
        elif dataset and "base" in dataset:  # made by the demo, see PUMakeData
            settings |= dataset
        comfy_host.make_room()
        found = comfy_host.answer("audit", settings)
        return io.NodeOutput(comfy_host.image(comfy_host.opened(found["sheet"])), found["text"], found["prior"])
