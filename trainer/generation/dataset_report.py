"""report.html of `make-data`: what was made, how, and how to train on it."""

from pathlib import Path
from typing import Any

from ..reporting import html

HINTS = {
    "normal": "may be generated; in unlabeled/",
    "hidden": "sensitive, but nothing in the name tells; in unlabeled/",
    "sensitive": "what must not come out; in sensitive/",
}


def write(result: dict[str, Any], out: Path) -> Path:
    """Args: result: the content of make-data.json. Returns: the page."""
    target = out / "report.html"
    html.save(target, out.resolve().name, [*_counts(result), *_pictures(out), *_usage(result), *_settings(result)])
    return target


def _counts(result: dict[str, Any]) -> list[str]:
    counts, prompts = result["counts"], result["prompts"]
    hidden, unlabeled = counts["hidden"], counts["normal"] + counts["hidden"]
    return [
        html.says(f"Images made by {result['settings']['base']} to train on."),
        html.table((), [(f"{counts[kind]} {kind}", f"“{text}”", HINTS[kind]) for kind, text in prompts.items()]),
        html.says(f"prior: {result['prior']:.4g} ({hidden} of {unlabeled} unlabeled images are sensitive)"),
    ]


def _pictures(out: Path) -> list[str]:
    return [
        html.heading("Do they show what they should?"),
        html.says(
            "The first of each kind. What they show is what is learned: images that do not fit their prompt are "
            "better moved away before training."
        ),
        html.picture(out / "sheet.png"),
        html.says(
            "manifest.jsonl says of every file which kind it is and how it was made; so does the text in each PNG. "
            "The trainer reads neither."
        ),
    ]


def _usage(result: dict[str, Any]) -> list[str]:
    parts = [html.heading("Train on them"), html.code(result["train"])]
    sensitive = result["prompts"]["sensitive"]
    if sensitive != result["prompts"]["normal"]:
        parts.append(html.says(f'With --sensitive-prompt "{sensitive}" that prompt is unlearned, too.'))
    return parts


def _settings(result: dict[str, Any]) -> list[str]:
    shown = [(name.replace("_", " "), value) for name, value in result["settings"].items() if value is not None]
    return [html.heading("Settings"), html.table((), shown)]
