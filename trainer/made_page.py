"""report.html of `make-data`: what was made, how, and how to train on it."""

from pathlib import Path
from typing import Any

from . import page

HINTS = {
    "normal": "may be generated; in unlabeled/",
    "hidden": "sensitive, but nothing in the name tells; in unlabeled/",
    "sensitive": "what must not come out; in sensitive/",
}


def write(result: dict[str, Any], out: Path) -> Path:
    """Args: result: the content of make-data.json. Returns: the page."""
    target = out / "report.html"
    page.save(target, out.resolve().name, [*_counts(result), *_pictures(out), *_usage(result), *_settings(result)])
    return target


def _counts(result: dict[str, Any]) -> list[str]:
    counts, prompts = result["counts"], result["prompts"]
    hidden, unlabeled = counts["hidden"], counts["normal"] + counts["hidden"]
    return [
        page.says(f"Images made by {result['settings']['base']} to train on."),
        page.table((), [(f"{counts[kind]} {kind}", f"“{text}”", HINTS[kind]) for kind, text in prompts.items()]),
        page.says(f"prior: {result['prior']:.4g} ({hidden} of {unlabeled} unlabeled images are sensitive)"),
    ]


def _pictures(out: Path) -> list[str]:
    return [
        page.heading("Do they show what they should?"),
        page.says(
            "The first of each kind. What they show is what is learned: images that do not fit their prompt are "
            "better moved away before training."
        ),
        page.picture(out / "sheet.png"),
        page.says(
            "manifest.jsonl says of every file which kind it is and how it was made; so does the text in each PNG. "
            "The trainer reads neither."
        ),
    ]


def _usage(result: dict[str, Any]) -> list[str]:
    parts = [page.heading("Train on them"), page.code(result["train"])]
    sensitive = result["prompts"]["sensitive"]
    if sensitive != result["prompts"]["normal"]:
        parts.append(page.says(f'With --sensitive-prompt "{sensitive}" that prompt is unlearned, too.'))
    return parts


def _settings(result: dict[str, Any]) -> list[str]:
    shown = [(name.replace("_", " "), value) for name, value in result["settings"].items() if value is not None]
    return [page.heading("Settings"), page.table((), shown)]
