"""Train for PU Unlearn: begin, or go on where a training was cancelled; keep the LoRA where LoraLoader lists it."""

from __future__ import annotations

import html
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import comfy_host, drawing, launch, result_cache
from .training_view import View

SAMPLES = 5  # times that pictures are made during training
PREVIEW_PX = 512
UNCHANGED = "\nNothing has changed since this was trained. Switch on retrain to train again."
BEFORE_ITS_FIRST_STATE = "continued where it was stopped, before anything was trained"
NOT_RESUMABLE = ("out-of-memory", "disk", "non-finite")  # failures that a new beginning would meet again


def result_of(settings: Mapping[str, Any], *, is_again: bool) -> tuple[dict[str, str], str]:
    """Return the files of a training, and a sentence where it is an earlier one.

    The files are called lora, curve, report and page, and before and after if there are pictures.

    Args: is_again: whether to train from the start what was trained or begun before.
    """
    known = result_cache.Results(comfy_host.output_root() / "results.json")
    named = {name: settings.get(name) for name in ("base", "unlabeled", "sensitive", "init_lora")}
    inputs = {name: Path(path) for name, path in named.items() if path not in (None, "builtin")}
    comfy_host.say("looking for changes in the images and the checkpoint")
    key = result_cache.key_of(settings, inputs, comfy_host.digests())
    if not is_again and (made := known.get(key)):
        return made, UNCHANGED
    comfy_host.make_room()
    made = _Training(settings, known, key).run(begun=None if is_again else known.interrupted(key))
    known.put(key, made)
    return made, ""


class _Training:
    def __init__(self, settings: Mapping[str, Any], known: result_cache.Results, key: str) -> None:
        self.settings, self.known, self.key = settings, known, key
        self.root = comfy_host.output_root()
        is_demo = settings.get("base", "builtin") == "builtin"
        self.folder = comfy_host.demo_lora_folder() if is_demo else comfy_host.lora_folder()

    def run(self, begun: str | None) -> dict[str, str]:
        """Train. Args: begun: the name of a training with the same settings and images that was cut short."""
        notes = []
        if begun and (self.root / begun / "config.toml").is_file():  # the trainer goes on from any phase
            step = _last_step(self.root / begun)
            view = View([f"continued from step {step}, where it was stopped" if step else BEFORE_ITS_FIRST_STATE])
            try:
                return self._follow({"resume": True, "name": begun, "output_dir": str(self.root)}, view)
            except launch.TrainerError as error:
                if view.step or error.kind in NOT_RESUMABLE:
                    raise
                notes.append(f"warning: it could not be continued, and began anew: {error}")
        if begun and not _has_trained(self.root / begun):
            shutil.rmtree(self.root / begun, ignore_errors=True)  # so that its name is free again
        return self._begin(notes)

    def _begin(self, notes: Sequence[str]) -> dict[str, str]:
        asked = self.settings["name"]
        name = comfy_host.free_name(asked, self.folder)
        if name != asked:
            notes = [*notes, f"name: there is a {asked} already, which was kept; this LoRA is {name}"]
        self.known.begin(self.key, name)
        every = max(1, self.settings["steps"] // SAMPLES)
        return self._follow({**self.settings, "name": name, "sample_every": every, "sidecars": False}, View(notes))

    def _follow(self, settings: Mapping[str, Any], view: View) -> dict[str, str]:
        done: launch.Event = {}
        try:
            for event in comfy_host.events([], settings):
                view.take(event)
                done = event if event["event"] == "done" else done
        except launch.TrainerError as error:
            view.fail(str(error))
            raise
        return _keep(done, self.folder, view.notes)


def _last_step(run: Path) -> int:
    """Return the step of the newest state in a run's folder; 0 if there is none."""
    steps = [path.stem.removeprefix("step") for path in (run / "state").glob("step*.safetensors")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def _has_trained(run: Path) -> bool:
    return _last_step(run) > 0 or run.with_name(f"{run.name}.safetensors").exists()


def _keep(done: launch.Event, folder: Path, notes: Sequence[str]) -> dict[str, str]:
    """Move the LoRA to the folder and write the summary. Return the files by kind."""
    run, trained = Path(done["report"]).parent, Path(done["lora"])
    lora = result_cache.move_new(trained, folder / trained.name)
    pictures = {path.stem: str(path) for path in (run / "samples").glob("[ab]*.png")}  # before and after, if made
    preview = lora.with_name(f"{lora.stem}.preview.png")
    if "after" in pictures and not preview.exists():
        picture = comfy_host.opened(pictures["after"])
        picture.thumbnail((PREVIEW_PX, PREVIEW_PX))
        picture.save(preview)
    page, summary, curve = run / "report.html", run / "summary.txt", run / "curve.png"
    drawing.on_dark(comfy_host.opened(run / "loss.png")).save(curve)
    text = page.read_text(encoding="utf-8").replace(html.escape(str(trained)), html.escape(str(lora)))
    result_cache.write(page, text)
    rates = [line for line in done["summary"].splitlines() if not line.startswith(("LoRA:", "report:"))]
    listed = lora.relative_to(comfy_host.lora_folder()).as_posix()
    where = [f"LoRA: {listed} (in LoraLoader's list after R), {lora}", f"report: {page.as_uri()}"]
    result_cache.write(summary, "\n".join([*rates, *where, *notes]))
    return {"lora": str(lora), "curve": str(curve), "report": str(summary), "page": str(page), **pictures}
