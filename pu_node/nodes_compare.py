"""PU Compare Runs: what differs between trainings, and what came of each."""

from __future__ import annotations

import time
from pathlib import Path

from comfy_api.latest import io

from .nodes_train import CATEGORY

NEWEST = 8  # runs that are compared where none is named


class PUCompareRuns(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PUCompareRuns",
            display_name="PU Compare Runs",
            category=CATEGORY,
            description="Settings that differ between trainings of PU Unlearn, their rates, quality and curves.",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "runs", default="", tooltip=f"Names of runs, separated by |; empty: the newest {NEWEST}."
                ),
                io.String.Input(
                    "path", optional=True, force_input=True, tooltip="From PU Unlearn, to compare after it has trained."
                ),
            ],
            outputs=[
                io.Image.Output("curves", "curves", tooltip="Sensitive / unlabeled loss, and R, of each run."),
                io.String.Output("report", "report", tooltip="The table, and where the page is."),
            ],
        )

    @classmethod
    def validate_inputs(cls, runs) -> bool | str:
        from . import comfy_host

        return comfy_host.refusal(lambda: _names(runs))

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        return time.time()  # runs come and grow without any input changing

    @classmethod
    def execute(cls, runs, path=None) -> io.NodeOutput:
        from . import comfy_host

        root = comfy_host.output_root()
        folders = [str(folder) for folder in _folders(root, runs)]
        found = comfy_host.answer("compare", {"out": str(root / "compare.html")}, folders)
        return io.NodeOutput(comfy_host.image(comfy_host.opened(found["picture"])), found["text"])


def _names(runs: str) -> list[str]:
    """Raises: ValueError for a name that leads elsewhere."""
    from . import comfy_host

    return [comfy_host.safe_name(name) for name in runs.split("|") if name.strip()]


def _folders(root: Path, runs: str) -> list[Path]:
    """Run folders below root. Raises: ValueError for a name that is none."""
    names = _names(runs)
    if not names:
        found = sorted((f.parent for f in root.glob("*/config.toml")), key=lambda f: f.stat().st_mtime)
        return found[-NEWEST:]
    for name in names:
        if not (root / name / "config.toml").is_file():
            raise ValueError(f"runs: there is no run {name!r} in {root}")
    return [root / name for name in names]
