"""PU Compare Runs: show the settings that differ between trainings, and their results."""

from __future__ import annotations

import time
from pathlib import Path

from comfy_api.latest import io

from . import drawing, widgets

NEWEST = 8  # runs compared by default


class PUCompareRuns(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return widgets.schema(
            io,
            node_id="PUCompareRuns",
            display_name="PU Compare Runs",
            description="Compares trainings of PU Unlearn: the settings that differ, rates, image quality and curves.",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "runs", default="", tooltip=f"Names of trainings, separated by |; empty: the newest {NEWEST}."
                ),
                io.String.Input(
                    "path", optional=True, force_input=True, tooltip="From PU Unlearn: compare after its training."
                ),
            ],
            outputs=[
                io.Image.Output(
                    "curves", "curves", tooltip="Of each training: sensitive / unlabeled loss, and the normal risk R."
                ),
                io.String.Output("report", "report", tooltip="The table, and where the report page is."),
            ],
        )

    @classmethod
    def validate_inputs(cls, runs) -> bool | str:
        from . import comfy_host

        return comfy_host.refusal(lambda: _names(runs or ""))  # None: from a link, checked later

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        return time.time()  # trainings are added and continue without any change of the inputs

    @classmethod
    def execute(cls, runs, path=None) -> io.NodeOutput:
        from . import comfy_host

        root = comfy_host.output_root()
        folders = [str(folder) for folder in _folders(root, runs)]
        found = comfy_host.answer("compare", {"out": str(root / "compare.html")}, folders)
        curves = drawing.on_dark(comfy_host.opened(found["picture"]))
        return io.NodeOutput(comfy_host.image(curves), comfy_host.in_words(found["text"]))


def _names(runs: str) -> list[str]:
    """Return the names in the text. Raises: ValueError for a name with folders."""
    from . import comfy_host

    return [comfy_host.safe_name(name, "runs") for name in runs.split("|") if name.strip()]


def _folders(root: Path, runs: str) -> list[Path]:
    """Return the folders of the named runs, or of the newest. Raises: ValueError for an unknown name."""
    names = _names(runs)
    if not names:
        found = sorted((f.parent for f in root.glob("*/config.toml")), key=lambda f: f.stat().st_mtime)
        return found[-NEWEST:]
    for name in names:
        if not (root / name / "config.toml").is_file():
            raise ValueError(f"runs: no training named {name!r} in {root}")
    return [root / name for name in names]
