"""Build the page of A1111, Forge and `python -m trainer ui`.

Uses only what gradio 3.41 (A1111), 4.40 (Forge) and the current release have in common. Imports nothing of `trainer`:
the form is made from trainer/schema.json and training runs as a child process.
"""

from __future__ import annotations

import html
import inspect
from typing import Any

import gradio as gr

from . import form, page_events, page_host, widgets
from .training_job import Job
from .widgets import DEMO, PRESETS

ROWS = (("prompt",), ("sensitive_prompt",), ("name",), ("steps", "rank", "lr"), ("prior", "temperature", "seed"))
FIRST = [name for row in ROWS for name in row]
LABELS = {"lr": "Learning rate", "min_snr_gamma": "Min-SNR gamma", "clip_skip": "CLIP skip"}
CSS = (
    "<style>.pu-problem {color: #b3261e; font-size: 0.9em} .pu-status progress {width: 100%} "
    ".pu-status pre, pre.pu-problem {white-space: pre-wrap; margin: 0.3em 0}</style>"
)
INTRODUCTION = (
    "<h2>PU Unlearn</h2><p>Train a LoRA that keeps Stable Diffusion 1.x from making something. Name a folder of "
    "unsorted images and one with a few examples of what must not come out. The digits demo needs neither: press Start "
    "to try it.</p>"
)


def build(job: Job) -> gr.Blocks:
    """Return the page. Args: job: the training that it starts and shows; it outlives the page."""
    with gr.Blocks(analytics_enabled=False, title="PU Unlearn") as blocks:
        gr.HTML(CSS + INTRODUCTION + _notice(page_host.advice()))
        with gr.Row():
            with gr.Column():
                inputs, problems = _form(job)
                general = gr.HTML(visible=False, elem_id="pu_unlearn_problem", elem_classes=["pu-problem"])
                problems["general"] = general
                with gr.Row():
                    plan = gr.Button("Plan: will it fit?", elem_id="pu_unlearn_plan")
                    start = gr.Button("Start", variant="primary", elem_id="pu_unlearn_start")
                    resume = gr.Button("Resume", elem_id="pu_unlearn_resume")
                    cancel = gr.Button("Cancel", interactive=False, elem_id="pu_unlearn_cancel")
                planned = gr.HTML(visible=False, elem_id="pu_unlearn_planned", elem_classes=["pu-status"])
            with gr.Column():
                shown = _live()
        outputs = [*shown.values(), start, cancel]
        names, boxes = list(inputs), list(problems.values())
        common = _common(start)
        plan.click(page_events.planner(job, names, list(problems)), list(inputs.values()), [*boxes, planned], **common)
        started = start.click(page_events.starter(job, names, list(problems)), list(inputs.values()), boxes, **common)
        resumed = resume.click(page_events.resumer(job, list(problems)), None, boxes, **common)
        for begun in (started, resumed):
            begun.then(page_events.watcher(job), None, outputs, **common)
        asked = [inputs[name] for name in ("checkpoint", "unlabeled", "prompt")]
        for name in ("unlabeled", "prompt"):
            inputs[name].blur(page_events.caption_checker(job), asked, problems["prompt"], **common)
        cancel.click(job.cancel, None, None, queue=False, **common)
        blocks.load(page_events.watcher(job), None, outputs, **common)
    for component in blocks.blocks.values():
        component.do_not_save_to_config = True  # otherwise a webui saves today's defaults and never changes them
    return blocks


def _common(button: gr.Button) -> dict[str, Any]:
    """Return the arguments of every event. From gradio 4 on, one call of a function runs at a time by default."""
    found: dict[str, Any] = {"show_progress": "hidden"}
    if "concurrency_limit" in inspect.signature(button.click).parameters:
        found["concurrency_limit"] = None  # a second browser tab watches the same training
    return found


def _notice(advice: str) -> str:
    return f"<pre class='pu-problem'>{html.escape(advice)}</pre>" if advice else ""


def _form(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs by field, and by field the line below each input that shows its problem."""
    problems: dict[str, Any] = {}

    def problem(name: str) -> None:
        problems[name] = gr.HTML(visible=False, elem_id=f"pu_unlearn_{name}_problem", elem_classes=["pu-problem"])

    def choices() -> list[str]:
        return [DEMO, *job.host.checkpoints()]

    inputs: dict[str, Any] = {}
    with gr.Row():
        inputs["checkpoint"] = gr.Dropdown(
            choices(), value=DEMO, label="Checkpoint", info="Stable Diffusion 1.x", elem_id="pu_unlearn_checkpoint"
        )
        refresh = gr.Button("Refresh list", size="sm", scale=0, min_width=110, elem_id="pu_unlearn_refresh")
    problem("checkpoint")
    with gr.Column(visible=False) as own:
        for name, text in (
            ("unlabeled", "images to train on; some may be sensitive"),
            ("sensitive", "images like those to unlearn; twenty are enough"),
        ):
            inputs[name] = gr.Textbox(label=f"Folder of {name} images", info=text, elem_id=f"pu_unlearn_{name}")
            problem(name)
    values = form.defaults(DEMO)
    for row in ROWS:
        with gr.Row():
            for name in row:
                with gr.Column(min_width=120):
                    inputs[name] = _widget(name, values[name])
                    problem(name)
    inputs["preset"] = gr.Dropdown(
        list(PRESETS), value="auto", label="Memory", info="auto: all that is free", elem_id="pu_unlearn_preset"
    )
    problem("preset")
    with gr.Accordion("More settings", open=False):
        for name in form.fields():
            if name not in FIRST:
                inputs[name] = _widget(name, values[name])
                problem(name)
    fields = list(form.fields())

    before = gr.State(DEMO)

    def choose(checkpoint: str, last: str) -> list[Any]:
        """Fill in the demo's settings or the defaults; between two other checkpoints keep the values."""
        found = form.defaults(checkpoint)
        is_kept = (checkpoint == DEMO) == (last == DEMO)
        values = [gr.update() if is_kept else gr.update(value=_shown(name, found[name])) for name in fields]
        return [checkpoint, gr.update(visible=checkpoint != DEMO), *values]

    def look_again() -> Any:
        job.host.rescan()
        return gr.update(choices=choices())

    shown = [before, own, *(inputs[name] for name in fields)]
    inputs["checkpoint"].change(choose, [inputs["checkpoint"], before], shown, queue=False)
    refresh.click(look_again, None, inputs["checkpoint"], queue=False)
    return inputs, problems


def _shown(name: str, value: Any) -> Any:
    """Return a setting's value as its input shows it: text where it may be left out."""
    may_be = widgets.may_be_absent(form.fields()[name])
    return ("" if value is None else str(value)) if may_be else value


def _widget(name: str, value: Any) -> Any:
    """Return one input made from the schema. `form` checks the limits and shows problems beside the field."""
    field = form.fields()[name]
    label = LABELS.get(name, name.replace("_", " ").capitalize())
    info = field["description"]
    if widgets.may_be_absent(field):
        info = info.replace("auto:", "empty:")
    shared = {"value": value, "label": label, "info": info, "elem_id": f"pu_unlearn_{name}"}
    kind = widgets.kind_of(field)
    if kind == "combo":
        return gr.Dropdown(list(field["enum"]), **shared)
    if kind == "boolean":
        return gr.Checkbox(**shared)
    if kind == "string":
        return gr.Textbox(**{**shared, "value": value or ""})
    if widgets.may_be_absent(field):  # an empty number is shown as 0 by gradio 3
        shared["value"] = _shown(name, value)
        return gr.Textbox(**shared, placeholder="estimated" if field.get("default") == "auto" else "none")
    return gr.Number(**shared)


def _live() -> dict[str, Any]:
    """Return the parts that show a training: status, loss curve, pictures, files."""
    picture: dict[str, Any] = {"type": "pil", "show_label": False, "interactive": False}  # it would cover the picture
    if "buttons" in inspect.signature(gr.Image.__init__).parameters:
        picture["buttons"] = ["download", "fullscreen"]  # not gradio's "share", which uploads the picture
    return {
        "status": gr.HTML("", elem_id="pu_unlearn_status", elem_classes=["pu-status"]),
        "curve": gr.Image(label="Loss by step", elem_id="pu_unlearn_curve", **picture),
        "sample": gr.Image(label="Pictures", elem_id="pu_unlearn_sample", **picture),
        "files": gr.File(
            label="LoRA and report",
            file_count="multiple",
            interactive=False,
            visible=False,
            elem_id="pu_unlearn_files",
        ),
    }
