"""The page of `make-data` (report.html): the images, their settings, and the command that trains on them."""

from pathlib import Path
from typing import Any

from ..reporting import html

HINTS = {
    "normal": "may be generated; in unlabeled/",
    "hidden": "sensitive, but its file name does not show it; in unlabeled/",
    "sensitive": "must not be generated; in sensitive/",
}


def write(result: dict[str, Any], out: Path) -> Path:
    """Write report.html. Args: result: the content of make-data.json. Returns: the path of the page."""
    counts, prompts, settings = result["counts"], result["prompts"], result["settings"]
    target = out / "report.html"
    html.save(
        target,
        "made_data.html",
        title=f"Images to train on: {out.resolve().name}",
        n_unlabeled=counts["normal"] + counts["hidden"],
        n_hidden=counts["hidden"],
        n_sensitive=counts["sensitive"],
        prior=result["prior"],
        base=settings["base"],
        kinds=[(kind, counts[kind], f"“{text}”", HINTS[kind]) for kind, text in prompts.items()],
        sheet=out / "sheet.png",
        train=result["train"],
        other_sensitive_prompt=prompts["sensitive"] if prompts["sensitive"] != prompts["normal"] else None,
        settings=[(name.replace("_", " "), value) for name, value in settings.items() if value is not None],
    )
    return target
