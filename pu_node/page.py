"""The page in A1111, Forge and `python -m trainer ui`: one function builds it.

Written for what gradio 3.41 (A1111), 4.40 (Forge) and the current release have in common. Nothing of `trainer` is
imported: the form is made from trainer/schema.json and training runs as a child process.
"""

from __future__ import annotations

import html
import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from . import form, launch, page_host, page_show, widgets
from .job import Job
from .widgets import DEMO, PRESETS

ROWS = (("prompt",), ("sensitive_prompt",), ("name",), ("steps", "rank", "lr"), ("prior", "temperature", "seed"))
FIRST = [name for row in ROWS for name in row]
LABELS = {"lr": "Learning rate", "min_snr_gamma": "Min-SNR gamma", "clip_skip": "CLIP skip"}
PAUSE_S = 0.5  # between looks at the training
DRAWINGS = 200  # of the curve over a run: each is a file that gradio keeps
CSS = (
    "<style>.pu-problem {color: #b3261e; font-size: 0.9em} .pu-status progress {width: 100%} "
    ".pu-status pre {white-space: pre-wrap; margin: 0.3em 0}</style>"
)


def build(job: Job) -> gr.Blocks:
    """The page. Args: job: what it starts and shows; it outlives the page."""
    with gr.Blocks(analytics_enabled=False, title="PU Unlearn") as blocks:
        gr.HTML(CSS + _notice(page_host.missing()))
        with gr.Row():
            with gr.Column():
                inputs, problems = _form(job)
                general = gr.HTML(visible=False, elem_id="pu_unlearn_problem", elem_classes=["pu-problem"])
                problems["general"] = general
                with gr.Row():
                    plan = gr.Button("Plan: will it fit?", elem_id="pu_unlearn_plan")
                    start = gr.Button("Start", variant="primary", elem_id="pu_unlearn_start")
                    cancel = gr.Button("Cancel", interactive=False, elem_id="pu_unlearn_cancel")
                planned = gr.HTML(visible=False, elem_id="pu_unlearn_planned", elem_classes=["pu-status"])
            with gr.Column():
                shown = _live()
        outputs = [*shown.values(), start, cancel]
        names, boxes = list(inputs), list(problems.values())
        common = _common(start)
        plan.click(_planner(job, names, list(problems)), list(inputs.values()), [*boxes, planned], **common)
        started = start.click(_starter(job, names, list(problems)), list(inputs.values()), boxes, **common)
        started.then(_watcher(job), None, outputs, **common)
        cancel.click(job.cancel, None, None, queue=False, **common)
        blocks.load(_watcher(job), None, outputs, **common)
    for component in blocks.blocks.values():
        component.do_not_save_to_config = True  # a webui would keep today's defaults for ever
    return blocks


def _common(button: gr.Button) -> dict[str, Any]:
    """Arguments of every event. gradio 4 on runs one call of a function at a time unless told; 3 cannot be told."""
    found: dict[str, Any] = {"show_progress": "hidden"}
    if "concurrency_limit" in inspect.signature(button.click).parameters:
        found["concurrency_limit"] = None  # a second browser tab watches the same training
    return found


def _notice(missing: Sequence[str]) -> str:
    if not missing:
        return ""
    found = html.escape("; ".join(missing))
    return (
        f"<p class='pu-problem'>Training needs an environment of its own here ({found}). "
        "<code>python install.py</code> in this extension's folder says how to make it; "
        "nothing of the webui changes.</p>"
    )


def _form(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns: the inputs by field, and the lines below them that say what is wrong, by field."""
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
            ("unlabeled", "images to learn from; some may be sensitive"),
            ("sensitive", "examples of what must not come out; twenty do"),
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
        """The demo has settings of its own; between two other checkpoints what was typed stays."""
        found = form.defaults(checkpoint)
        is_kept = (checkpoint == DEMO) == (last == DEMO)
        values = [gr.update() if is_kept else gr.update(value=found[name]) for name in fields]
        return [checkpoint, gr.update(visible=checkpoint != DEMO), *values]

    def look_again() -> Any:
        job.host.rescan()
        return gr.update(choices=choices())

    shown = [before, own, *(inputs[name] for name in fields)]
    inputs["checkpoint"].change(choose, [inputs["checkpoint"], before], shown, queue=False)
    refresh.click(look_again, None, inputs["checkpoint"], queue=False)
    return inputs, problems


def _widget(name: str, value: Any) -> Any:
    """One input made from the schema. Limits are held by `form`, which says them beside the field."""
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
    return gr.Textbox(**{**shared, "value": value or ""}) if kind == "string" else gr.Number(**shared)


def _live() -> dict[str, Any]:
    picture = {"type": "pil", "show_label": False, "interactive": False}  # a label would lie on the picture's own
    if "buttons" in inspect.signature(gr.Image.__init__).parameters:
        picture["buttons"] = ["download", "fullscreen"]  # the current gradio's others would put it on the internet
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


def _said(names: Sequence[str], problems: Mapping[str, str]) -> list[Any]:
    """Updates of the lines below the fields."""
    return [
        gr.update(value=html.escape(problems[name] if name == "general" else f"{name}: {problems[name]}"), visible=True)
        if name in problems
        else gr.update(value="", visible=False)
        for name in names
    ]


def _read(job: Job, names: Sequence[str], values: Sequence[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns: settings for the trainer, and what is wrong with them by field."""
    settings, problems = form.read(dict(zip(names, values, strict=True)), job.host.checkpoints(), job.host.roots)
    return {**settings, "device": job.host.device}, problems


def _starter(job: Job, names: Sequence[str], lines: Sequence[str]) -> Any:
    def start(*values: Any) -> list[Any]:
        settings, problems = _read(job, names, values)
        if not problems:
            try:
                job.start(settings)
            except ValueError as error:
                problems = {"general": str(error)}
        return _said(lines, problems)

    return start


def _planner(job: Job, names: Sequence[str], lines: Sequence[str]) -> Any:
    def plan(*values: Any) -> Iterator[list[Any]]:
        settings, problems = _read(job, names, values)
        if problems:
            yield [*_said(lines, problems), gr.update(visible=False)]
            return
        yield [*_said(lines, {}), gr.update(value="planning …", visible=True)]
        try:
            text = "\n".join(job.alone(lambda: list(_plan(settings))))
        except (ValueError, launch.TrainerError) as error:
            yield [*_said(lines, form.by_field(str(error))), gr.update(visible=False)]
            return
        yield [*_said(lines, {}), gr.update(value=f"<pre>{html.escape(text)}</pre>", visible=True)]

    return plan


def _plan(settings: Mapping[str, Any]) -> Iterator[str]:
    """What the folders hold (the demo brings its own), and what training takes."""
    for command in ("data", "plan") if "base" in settings else ("plan",):
        for event in launch.follow(launch.command([command], settings), lambda: None):
            if event["event"] == "data":
                yield event["text"]
            elif event["event"] == "plan":
                yield from event["lines"]


def _watcher(job: Job) -> Any:
    def watch() -> Iterator[list[Any]]:
        seen, drawn, picture = -1, -1, None
        while True:
            state, seen = job.state(seen, timeout_s=30)
            every = max(1, state.of // DRAWINGS)
            is_new = state.step != drawn and (state.step - drawn >= every or state.step == state.of or not state.step)
            if is_new:
                drawn = state.step
            samples = tuple(state.samples.items())
            yield [
                gr.update(value=page_show.status(state)),
                gr.update(value=page_show.curve(state)) if is_new else gr.update(),
                gr.update(value=page_show.pictures(state)) if samples != picture else gr.update(),
                gr.update(value=[str(path) for path in state.files] or None, visible=bool(state.files)),
                gr.update(interactive=not state.is_active),
                gr.update(interactive=state.is_active),
            ]
            picture = samples
            if not state.is_active:
                return
            time.sleep(PAUSE_S)

    return watch
