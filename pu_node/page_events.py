"""Handle the page's buttons: values of the form in, updates of its parts out."""

from __future__ import annotations

import contextlib
import html
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from . import form, launch, page_render
from .training_job import Job

PAUSE_S = 0.5  # between two updates of the page
DRAWINGS = 200  # of the loss curve in one training: gradio keeps a file of each


def _problem_lines(names: Sequence[str], problems: Mapping[str, str]) -> list[Any]:
    """Return updates of the lines below the fields."""
    return [
        gr.update(value=html.escape(problems[name] if name == "general" else f"{name}: {problems[name]}"), visible=True)
        if name in problems
        else gr.update(value="", visible=False)
        for name in names
    ]


def _read(job: Job, names: Sequence[str], values: Sequence[Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return settings for the trainer, and problems by field."""
    settings, problems = form.read(dict(zip(names, values, strict=True)), job.host.checkpoints(), job.host.roots)
    return {**settings, "device": job.host.device}, problems


def starter(job: Job, names: Sequence[str], lines: Sequence[str]) -> Any:
    """Return what Start does. Args: names: of the inputs. lines: names of the problem lines."""

    def start(*values: Any) -> list[Any]:
        settings, problems = _read(job, names, values)
        problems = problems or form.without_caption(settings)
        if not problems:
            try:
                job.start(settings)
            except ValueError as error:
                problems = {"general": str(error)}
        return _problem_lines(lines, problems)

    return start


def resumer(job: Job, lines: Sequence[str]) -> Any:
    """Return what Resume does. Args: lines: names of the problem lines."""

    def resume() -> list[Any]:
        try:
            job.resume()
        except (ValueError, OSError) as error:
            return _problem_lines(lines, {"general": str(error)})
        return _problem_lines(lines, {})

    return resume


def caption_checker(job: Job) -> Any:
    """Return what tells of missing captions, under the prompt, as soon as the folder or the prompt is filled in."""

    def check(checkpoint: Any, place: Any, prompt: Any) -> Any:
        problems: dict[str, str] = {}
        if checkpoint != form.DEMO and place:
            with contextlib.suppress(ValueError):  # a folder that cannot be: Start and Plan say so
                problems = form.without_caption({"prompt": prompt, "unlabeled": form.folder(place, job.host.roots)})
        return _problem_lines(["prompt"], problems)[0]

    return check


def planner(job: Job, names: Sequence[str], lines: Sequence[str]) -> Any:
    """Return what Plan does. Args: names: of the inputs. lines: names of the problem lines."""

    def plan(*values: Any) -> Iterator[list[Any]]:
        settings, problems = _read(job, names, values)
        if problems:
            yield [*_problem_lines(lines, problems), gr.update(visible=False)]
            return
        yield [*_problem_lines(lines, {}), gr.update(value="planning …", visible=True)]
        try:
            text = "\n".join(job.alone(lambda: list(_plan(settings))))
        except (ValueError, launch.TrainerError) as error:
            yield [*_problem_lines(lines, form.by_field(str(error))), gr.update(visible=False)]
            return
        yield [*_problem_lines(lines, {}), gr.update(value=f"<pre>{html.escape(text)}</pre>", visible=True)]

    return plan


def _plan(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a plan: the images found (not for the demo), and the memory that training needs."""
    for command in ("data", "plan") if "base" in settings else ("plan",):
        for event in launch.follow(launch.command([command], settings), lambda: None):
            if event["event"] == "data":
                yield event["text"]
            elif event["event"] == "plan":
                told = (
                    event["lines"] if event.get("budget_gib") is None else event["lines"][:-1]
                )  # the last is the verdict
                yield from (*_verdict(event), *told)


def _verdict(event: Mapping[str, Any]) -> list[str]:
    """Return the answer to "will it fit?" in a line, and what to do if not."""
    if (budget := event.get("budget_gib")) is None:
        return ["No graphics card was found to compare with: this is what a training takes."]
    if event["fits"]:
        return [f"Yes, it fits into the {budget:.1f} GiB there are."]
    return [f"No, it does not fit into the {budget:.1f} GiB there are: lower the resolution or the rank."]


def watcher(job: Job) -> Any:
    """Return what shows the training until it ends."""

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
                gr.update(value=page_render.status(state)),
                gr.update(value=page_render.curve(state)) if is_new else gr.update(),
                gr.update(value=page_render.pictures(state)) if samples != picture else gr.update(),
                gr.update(value=[str(path) for path in state.files] or None, visible=bool(state.files)),
                gr.update(interactive=not state.is_active),
                gr.update(interactive=state.is_active),
            ]
            picture = samples
            if not state.is_active:
                return
            time.sleep(PAUSE_S)

    return watch
