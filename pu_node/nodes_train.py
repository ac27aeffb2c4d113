"""PU Unlearn and PU Plan: hand settings to the trainer and show its results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from . import drawing, run_numbers, widgets
from .nodes_input import (
    MAIN,
    UNLINKED,
    Dataset,
    Options,
    checkpoint_link,
    checkpoint_refusal,
    checkpoint_stamp,
    checkpoints,
)
from .widgets import PRESETS

LossMap = io.Custom("LOSS_MAP")
NEW_LORA = "[none: a new one]"
DEMO_PX = 64  # side of its pictures


def _inputs() -> list[Any]:
    """Return the inputs of PU Unlearn and PU Plan. Add new ones at the end: workflows save widgets by position."""
    return [
        io.Combo.Input("checkpoint", options=checkpoints(), tooltip="Stable Diffusion 1.x, or the built-in demo."),
        Dataset.Input("dataset", optional=True, tooltip="From PU Dataset. The demo has its own."),
        Options.Input("options", optional=True, tooltip="From PU Options."),
        io.Combo.Input(
            "preset", options=list(PRESETS), default="auto", tooltip="How much memory to use; auto: all that is free."
        ),
        *(widgets.make(io, name) for name in MAIN),
    ]


def _settings(checkpoint, dataset, options, preset, checkpoint_link, **main: Any) -> dict[str, Any]:
    """Return the trainer's settings. Raises: ValueError with a sentence for people."""
    from . import comfy_host

    base = comfy_host.checkpoint(checkpoint_link or checkpoint)
    if preset not in PRESETS:
        raise ValueError(f"preset: {preset!r} must be one of {', '.join(PRESETS)}")
    if unknown := set(options or {}) - set(widgets.fields()):  # a request may hold any object in place of a link
        raise ValueError(f"options: {', '.join(sorted(unknown))} is no setting of PU Options; connect that node")
    found = {**(options or {}), **widgets.given(main), "name": comfy_host.safe_name(main["name"])}
    found |= comfy_host.with_dataset(base, dataset)
    if PRESETS[preset]:
        found[PRESETS[preset]] = True
    return {**found, "output_dir": str(comfy_host.output_root())}


class PUUnlearn(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.schema(
            io,
            node_id="PUUnlearn",
            display_name="PU Unlearn",
            description="Trains a LoRA that keeps the model from generating sensitive images.",
            is_output_node=True,
            inputs=[
                *_inputs(),
                io.Boolean.Input(
                    "retrain",
                    default=False,
                    tooltip="Train again, from the start, with settings and images that were trained before.",
                ),
                checkpoint_link(),
                io.String.Input(
                    "plan", optional=True, force_input=True, tooltip="From PU Plan, which then runs first."
                ),
                _lora_to_continue(),
            ],
            outputs=[
                io.LoraModel.Output("lora", "lora", tooltip="For PU Apply LoRA and the core LoRA nodes."),
                io.String.Output(
                    "path", "path", tooltip="Path of the LoRA file. LoraLoader lists it after a refresh (R)."
                ),
                io.Image.Output("curve", "curve", tooltip="Loss by training step."),
                io.Image.Output(
                    "before_after", "before / after", tooltip="Pictures of the same seeds, without and with the LoRA."
                ),
                io.String.Output("report", "report", tooltip="Results, and where the report page is."),
                *_number_outputs(),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, checkpoint_link=UNLINKED) -> bool | str:
        return checkpoint_refusal(checkpoint, checkpoint_link)

    @classmethod
    def fingerprint_inputs(cls, checkpoint, retrain, checkpoint_link=UNLINKED, init_lora=NEW_LORA, **_) -> str | float:
        from . import comfy_host

        if retrain is not False or init_lora is None:  # or linked, and not known here
            return time.time()
        stamp = checkpoint_stamp(checkpoint, checkpoint_link)
        try:
            return stamp if init_lora == NEW_LORA else f"{stamp} {comfy_host.stamp(comfy_host.lora_file(init_lora))}"
        except ValueError:
            return stamp  # told by execute

    @classmethod
    def execute(
        cls, retrain, dataset=None, options=None, checkpoint_link=None, plan=None, init_lora=NEW_LORA, **main: Any
    ) -> io.NodeOutput:
        from . import comfy_host, training_run

        settings = _settings(dataset=dataset, options=options, checkpoint_link=checkpoint_link, **main)
        if init_lora != NEW_LORA:
            settings["init_lora"] = str(_listed_lora(init_lora))
        made, remark = training_run.result_of(settings, is_again=retrain)
        images = [(k, comfy_host.opened(made[k])) for k in ("before", "after") if k in made]
        shown = drawing.side_by_side(images) if images else drawing.text(["no pictures: see the report"])
        report = Path(made["report"]).read_text(encoding="utf-8") + remark
        return io.NodeOutput(
            comfy_host.load_lora(made["lora"]),
            made["lora"],
            comfy_host.image(comfy_host.opened(made["curve"])),
            comfy_host.image(shown),
            report,
            *_numbers(made, settings),
            ui=_for_history(made, report),
        )


def _lora_to_continue() -> Any:
    import folder_paths

    return io.Combo.Input(
        "init_lora",
        display_name=widgets.LABELS["init_lora"],
        options=[NEW_LORA, *folder_paths.get_filename_list("loras")],
        default=NEW_LORA,
        optional=True,
        tooltip="Train this LoRA further, into a new file. It needs the same rank.",
    )


def _listed_lora(name: str) -> Path:
    """Return the file of a LoRA to continue. Raises: ValueError, which names the widget, if it is not listed."""
    from . import comfy_host

    try:
        return comfy_host.lora_file(name)
    except ValueError as error:
        raise ValueError(f"{widgets.LABELS['init_lora']}: {error}; press R if it is new") from None


def _number_outputs() -> list[Any]:
    """Return the outputs beside the LoRA, pictures and report. Add new ones at the end: links go by position."""
    measured = "Share of non-sensitive pictures; only the demo measures it: else -1. PU Evaluate does for others."
    return [
        io.Image.Output("before", "before", tooltip="The pictures without the LoRA, one by one."),
        io.Image.Output("after", "after", tooltip="The pictures of the same seeds with the LoRA, one by one."),
        LossMap.Output("loss", "loss", tooltip="The loss by training step, for Plot Loss Graph."),
        io.Float.Output(
            "prior_used", "prior", tooltip="The share of sensitive images that was trained with; -1: unknown."
        ),
        io.Float.Output("prior_low", "prior low", tooltip="Lower end of the prior's 95 % interval; -1: not estimated."),
        io.Float.Output("prior_high", "prior high", tooltip="Upper end of that interval; -1: not estimated."),
        io.Float.Output("rate_before", "rate before", tooltip=measured),
        io.Float.Output("rate_after", "rate after", tooltip="The same share with the LoRA; -1: not measured."),
    ]


def _numbers(made: dict[str, str], settings: dict[str, Any]) -> list[Any]:
    """Return the values of _number_outputs."""
    from . import comfy_host

    found = run_numbers.read(Path(made["page"]).parent, settings.get("prior"))
    side = settings.get("resolution", DEMO_PX)
    pictures = [
        drawing.tiles(comfy_host.opened(made[kind]), side) if kind in made else [drawing.text(["no pictures"])]
        for kind in ("before", "after")
    ]
    prior = (found.prior, found.prior_low, found.prior_high)
    losses = {"loss": found.losses}
    return [*map(comfy_host.images, pictures), losses, *prior, found.rate_before, found.rate_after]


def _for_history(made: dict[str, str], report: str) -> dict[str, Sequence[Any]]:
    """Return what ComfyUI's page and /history show of a training. Args: made: its files by kind."""
    from . import comfy_host

    pictures = [made[kind] for kind in ("curve", "before", "after") if kind in made]
    return {
        "text": [report],
        "images": [shown for path in pictures for shown in comfy_host.shown_file(path)],
        "lora": [Path(made["lora"]).relative_to(comfy_host.lora_folder()).as_posix()],
        "report": [Path(made["page"]).as_uri()],
    }


class PUPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.schema(
            io,
            node_id="PUPlan",
            display_name="PU Plan",
            description="Predicts the GPU memory that PU Unlearn needs with these settings. Loads no model.",
            is_output_node=True,
            inputs=[*_inputs(), checkpoint_link()],
            outputs=[
                io.String.Output("plan", "plan", tooltip="Memory settings and predicted peak memory by part."),
                io.Image.Output("table", "table", tooltip="The plan as a picture."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, checkpoint_link=UNLINKED) -> bool | str:
        return checkpoint_refusal(checkpoint, checkpoint_link)

    @classmethod
    def fingerprint_inputs(cls, checkpoint, checkpoint_link=UNLINKED, **_) -> str:
        return checkpoint_stamp(checkpoint, checkpoint_link)

    @classmethod
    def execute(cls, dataset=None, options=None, checkpoint_link=None, **main: Any) -> io.NodeOutput:
        from . import comfy_host

        settings = _settings(dataset=dataset, options=options, checkpoint_link=checkpoint_link, **main)
        plan = [event for event in comfy_host.events(["plan"], settings) if event["event"] == "plan"][-1]
        lines = [widgets.in_node_words(line) for line in plan["lines"]]
        return io.NodeOutput("\n".join(lines), comfy_host.image(drawing.text(lines)))
