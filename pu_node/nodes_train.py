"""PU Dataset, PU Options, PU Unlearn, PU Plan: hand settings to the trainer and show its results."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from . import drawing, launch, result_cache, widgets
from .widgets import DEMO, PRESETS

CATEGORY = "PU Unlearn"
Dataset, Options = io.Custom("PU_DATASET"), io.Custom("PU_OPTIONS")
MAIN = ("steps", "rank", "lr", "prior", "temperature", "objective", "seed", "name")
DATA = ("prompt", "sensitive_prompt")
SAMPLES = 5  # times that pictures are made during training
SHOW_EVERY = 5  # steps between previews: each is a JPEG for the browser


def _rare() -> list[str]:
    """Return the settings of PU Options."""
    return [name for name in widgets.fields() if name not in (*MAIN, *DATA)]


def checkpoints() -> list[str]:
    """Return the options of every checkpoint widget."""
    import folder_paths

    return [DEMO, *folder_paths.get_filename_list("checkpoints")]


class PUDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from .comfy_host import input_folders

        folders = input_folders() or ["[no subfolder in ComfyUI/input]"]
        return io.Schema(
            node_id="PUDataset",
            display_name="PU Dataset",
            category=CATEGORY,
            description="Two folders in ComfyUI/input: images to train on, and examples of unwanted images.",
            inputs=[
                io.Combo.Input("unlabeled", options=folders, tooltip="Images to train on. Some may be sensitive."),
                io.Combo.Input(
                    "sensitive", options=folders, tooltip="Images like those to unlearn. Twenty are enough."
                ),
                widgets.make(io, "prompt", default="a photo"),
                widgets.make(io, "sensitive_prompt"),
                io.Int.Input(
                    "resolution", default=512, min=64, max=1024, step=8, tooltip="Training resolution in pixels."
                ),
                io.Boolean.Input("skip_bad_images", default=False, tooltip="Ignore images that cannot be read."),
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
    def validate_inputs(cls, unlabeled, sensitive) -> bool | str:
        # ComfyUI 0.3 holds no combo of a V3 node against its options
        from . import comfy_host

        return comfy_host.refusal(lambda: [comfy_host.input_folder(name) for name in (unlabeled, sensitive)])

    @classmethod
    def execute(cls, unlabeled, sensitive, prompt, sensitive_prompt, resolution, skip_bad_images) -> io.NodeOutput:
        from . import comfy_host

        dataset = {
            "unlabeled": str(comfy_host.input_folder(unlabeled)),
            "sensitive": str(comfy_host.input_folder(sensitive)),
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
        return io.Schema(
            node_id="PUOptions",
            display_name="PU Options",
            category=CATEGORY,
            description="Settings of PU Unlearn that are rarely changed.",
            inputs=[widgets.make(io, name) for name in _rare()],
            outputs=[Options.Output("options", "options", tooltip="For PU Unlearn and PU Plan.")],
        )

    @classmethod
    def execute(cls, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(widgets.given(options))


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


def _refusal(checkpoint: str, name: str, preset: str) -> bool | str:
    """Return True, or why one of the values is refused."""
    from . import comfy_host

    if preset not in PRESETS:
        return f"preset: {preset!r} must be one of {', '.join(PRESETS)}"
    return comfy_host.refusal(lambda: (comfy_host.checkpoint(checkpoint), comfy_host.safe_name(name)))


def _settings(checkpoint, dataset, options, preset, **main: Any) -> dict[str, Any]:
    """Return the trainer's settings. Raises: ValueError with a sentence for people."""
    from . import comfy_host

    base = comfy_host.checkpoint(checkpoint)
    if base is not None and dataset is None:
        raise ValueError("dataset: connect a PU Dataset; only the built-in demo has its own images")
    found = {**(options or {}), **widgets.given(main), "name": comfy_host.safe_name(main["name"])}
    if base is not None:
        found |= {**dataset, "base": str(base)}
    elif dataset and "base" in dataset:  # made by the demo, see PUMakeData
        found |= dataset
    if PRESETS[preset]:
        found[PRESETS[preset]] = True
    return {**found, "output_dir": str(comfy_host.output_root())}


class PUUnlearn(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PUUnlearn",
            display_name="PU Unlearn",
            category=CATEGORY,
            description="Trains a LoRA that keeps the model from generating sensitive images.",
            is_output_node=True,
            inputs=[
                *_inputs(),
                io.Boolean.Input(
                    "retrain", default=False, tooltip="Train again with settings that were trained before."
                ),
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
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, name, preset) -> bool | str:
        return _refusal(checkpoint, name, preset)

    @classmethod
    def execute(cls, retrain, dataset=None, options=None, **main: Any) -> io.NodeOutput:
        from . import comfy_host

        settings = _settings(dataset=dataset, options=options, **main)
        named = (settings.get(k) for k in ("base", "unlabeled", "sensitive"))
        inputs = [Path(name) for name in named if name not in (None, "builtin")]
        key = result_cache.key_of(settings, inputs)
        known = result_cache.Results(comfy_host.output_root() / "results.json")
        made = None if retrain else known.get(key)
        if made is None:
            made = _train(settings)
            known.put(key, made)
        images = [(k, comfy_host.opened(made[k])) for k in ("before", "after") if k in made]
        shown = drawing.side_by_side(images) if images else drawing.text(["no pictures: see the report"])
        return io.NodeOutput(
            comfy_host.load_lora(made["lora"]),
            made["lora"],
            comfy_host.image(comfy_host.opened(made["curve"])),
            comfy_host.image(shown),
            Path(made["report"]).read_text(encoding="utf-8"),
        )


def _train(settings: dict[str, Any]) -> dict[str, str]:
    """Run the trainer. Return the files it made: kind -> path."""
    from . import comfy_host

    comfy_host.make_room()
    settings = {**settings, "sample_every": max(1, settings["steps"] // SAMPLES)}
    progress: comfy_host.Progress | None = None
    unlabeled: list[float | None] = []
    sensitive: list[float | None] = []
    sample: Path | None = None
    warnings: list[str] = []
    done: launch.Event = {}
    for event in comfy_host.events([], settings):
        if event["event"] == "step":
            progress = progress or comfy_host.Progress(event["of"])
            unlabeled.append(event["risk_unlabeled"])
            ratio = event["ratio"]
            sensitive.append(None if ratio is None else ratio * event["risk_unlabeled"])
            show = event["step"] % SHOW_EVERY == 0 or event["step"] == event["of"]
            progress.show(event["step"], drawing.live(unlabeled, sensitive, event["of"], sample) if show else None)
        elif event["event"] == "sample":
            sample = Path(event["path"])
            if progress:
                progress.show(len(unlabeled), drawing.live(unlabeled, sensitive, progress.total, sample))
        elif event["event"] == "warning":
            warnings.append(f"warning: {widgets.in_node_words(event['message'])}")
        elif event["event"] == "done":
            done = event
    return _keep(done, warnings)


def _keep(done: launch.Event, warnings: Sequence[str]) -> dict[str, str]:
    """Copy the LoRA to where LoraLoader lists it and write the summary. Return the files by kind."""
    from . import comfy_host

    run = Path(done["report"]).parent
    lora = comfy_host.lora_folder() / Path(done["lora"]).name
    result_cache.write(lora, Path(done["lora"]).read_bytes())
    report = run / "summary.txt"
    result_cache.write(report, "\n".join([done["summary"], *warnings]).encode())
    pictures = {path.stem: str(path) for path in (run / "samples").glob("[ab]*.png")}  # before and after, if made
    return {"lora": str(lora), "curve": str(run / "loss.png"), "report": str(report), **pictures}


class PUPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PUPlan",
            display_name="PU Plan",
            category=CATEGORY,
            description="Predicts the GPU memory that PU Unlearn needs with these settings. Loads no model.",
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                io.String.Output("plan", "plan", tooltip="Memory settings and predicted peak memory by part."),
                io.Image.Output("table", "table", tooltip="The plan as a picture."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, name, preset) -> bool | str:
        return _refusal(checkpoint, name, preset)

    @classmethod
    def execute(cls, dataset=None, options=None, **main: Any) -> io.NodeOutput:
        from . import comfy_host

        settings = _settings(dataset=dataset, options=options, **main)
        plan = [event for event in comfy_host.events(["plan"], settings) if event["event"] == "plan"][-1]
        lines = [widgets.in_node_words(line) for line in plan["lines"]]
        return io.NodeOutput("\n".join(lines), comfy_host.image(drawing.text(lines)))
