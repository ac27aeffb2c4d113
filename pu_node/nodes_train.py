"""PU Dataset, PU Options, PU Unlearn, PU Plan: what goes to the trainer and comes back from it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from . import drawing, launch, result_cache, widgets
from .widgets import DEMO, PRESETS

CATEGORY = "PU Unlearn"
Dataset, Options = io.Custom("PU_DATASET"), io.Custom("PU_OPTIONS")
MAIN = ("steps", "rank", "lr", "prior", "temperature", "objective", "seed", "name")
DATA = ("prompt", "sensitive_prompt")
SAMPLES = 5  # times that pictures are made while it trains
SHOW_EVERY = 5  # steps between previews: each is a JPEG to the page


def _rare() -> list[str]:
    return [name for name in widgets.fields() if name not in (*MAIN, *DATA)]


def checkpoints() -> list[str]:
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
            description="Two folders of images below ComfyUI/input: what to learn from, and what must not come out.",
            inputs=[
                io.Combo.Input("unlabeled", options=folders, tooltip="Images to learn from. Some may be sensitive."),
                io.Combo.Input("sensitive", options=folders, tooltip="Examples of what must not come out; twenty do."),
                widgets.make(io, "prompt", default="a photo"),
                widgets.make(io, "sensitive_prompt"),
                io.Int.Input("resolution", default=512, min=64, max=1024, step=8, tooltip="Pixels to train at."),
                io.Boolean.Input("skip_bad_images", default=False, tooltip="Leave out images that cannot be read."),
            ],
            outputs=[
                Dataset.Output("dataset", "dataset", tooltip="For PU Unlearn."),
                io.Image.Output("sheet", "sheet", tooltip="The first images of both folders."),
                io.String.Output("counts", "counts", tooltip="What was found, and what was skipped and why."),
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
            arguments = launch.command(["data"], {**dataset, "base": "builtin", "sheet": str(sheet)})
            found = [e for e in launch.follow(arguments, comfy_host.check) if e["event"] == "data"][-1]
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
    """What PU Unlearn and PU Plan share. New ones go to the end: saved workflows count widgets by place."""
    return [
        io.Combo.Input("checkpoint", options=checkpoints(), tooltip="Stable Diffusion 1.x, or the built-in demo."),
        Dataset.Input("dataset", optional=True, tooltip="From PU Dataset; the demo brings its own."),
        Options.Input("options", optional=True, tooltip="From PU Options."),
        io.Combo.Input("preset", options=list(PRESETS), default="auto", tooltip="How much memory to use; auto: all."),
        *(widgets.make(io, name) for name in MAIN),
    ]


def _refusal(checkpoint: str, name: str, preset: str) -> bool | str:
    from . import comfy_host

    if preset not in PRESETS:
        return f"preset: {preset!r} is none of {', '.join(PRESETS)}"
    return comfy_host.refusal(lambda: (comfy_host.checkpoint(checkpoint), comfy_host.safe_name(name)))


def _settings(checkpoint, dataset, options, preset, **main: Any) -> dict[str, Any]:
    """The trainer's settings. Raises: ValueError in a sentence for people."""
    from . import comfy_host

    base = comfy_host.checkpoint(checkpoint)
    if base is not None and dataset is None:
        raise ValueError("dataset: connect a PU Dataset; only the built-in demo brings its own images")
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
            description="Trains a LoRA that keeps sensitive images from coming out. Cancel at any time.",
            is_output_node=True,
            inputs=[
                *_inputs(),
                io.Boolean.Input("retrain", default=False, tooltip="Train again though the same was trained before."),
            ],
            outputs=[
                io.LoraModel.Output("lora", "lora", tooltip="For PU Apply LoRA and the core LoRA nodes."),
                io.String.Output("path", "path", tooltip="The file; LoraLoader lists it after a refresh (R)."),
                io.Image.Output("curve", "curve", tooltip="Loss by step."),
                io.Image.Output("before_after", "before / after", tooltip="Same seeds, without and with the LoRA."),
                io.String.Output("report", "report", tooltip="Numbers, and where the report page is."),
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
    """Run the trainer. Returns: the files it made, by what they are."""
    from . import comfy_host

    comfy_host.make_room()
    settings = {**settings, "sample_every": max(1, settings["steps"] // SAMPLES)}
    progress, unlabeled, sensitive, sample, warnings, done = None, [], [], None, [], None
    for event in launch.follow(launch.command([], settings), comfy_host.check):
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
            warnings.append(f"warning: {event['message']}")
        elif event["event"] == "done":
            done = event
    run = Path(done["report"]).parent
    lora = comfy_host.lora_folder() / Path(done["lora"]).name
    result_cache.write(lora, Path(done["lora"]).read_bytes())
    report = run / "summary.txt"
    result_cache.write(report, "\n".join([done["summary"], *warnings]).encode())
    pictures = {path.stem: str(path) for path in (run / "samples").glob("[ab]*.png")}  # before, after; or none
    return {"lora": str(lora), "curve": str(run / "loss.png"), "report": str(report), **pictures}


class PUPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PUPlan",
            display_name="PU Plan",
            category=CATEGORY,
            description="Predicts the memory that PU Unlearn will take with these settings, before anything is loaded.",
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                io.String.Output("plan", "plan", tooltip="Chosen settings and peak memory by part."),
                io.Image.Output("table", "table", tooltip="The same as a picture."),
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint, name, preset) -> bool | str:
        return _refusal(checkpoint, name, preset)

    @classmethod
    def execute(cls, dataset=None, options=None, **main: Any) -> io.NodeOutput:
        from . import comfy_host

        settings = _settings(dataset=dataset, options=options, **main)
        found = list(launch.follow(launch.command(["plan"], settings), comfy_host.check))
        lines = [e for e in found if e["event"] == "plan"][-1]["lines"]
        return io.NodeOutput("\n".join(lines), comfy_host.image(drawing.text(lines)))
