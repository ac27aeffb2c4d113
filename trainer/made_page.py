"""report.html of `make-data`: what was made, how, and how to train on it. Self-contained, all text escaped."""

import base64
import html
from pathlib import Path
from typing import Any

from .files import write_text
from .report import STYLE

MORE_STYLE = "pre{white-space:pre-wrap}"  # a long command is to be seen whole
HINTS = {
    "normal": "may be generated; in <code>unlabeled/</code>",
    "hidden": "sensitive, but nothing in the name tells; in <code>unlabeled/</code>",
    "sensitive": "what must not come out; in <code>sensitive/</code>",
}


def write(result: dict[str, Any], out: Path) -> Path:
    """Args: result: the content of make-data.json. Returns: the page."""
    body = f"<h1>{html.escape(out.resolve().name)}</h1>" + _counts(result) + _pictures(out) + _usage(result)
    body += f"<h2>Settings</h2>{_table(result['settings'])}"
    head = f"<meta charset=utf-8><title>{html.escape(out.resolve().name)}</title><style>{STYLE}{MORE_STYLE}</style>"
    page = out / "report.html"
    write_text(page, f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n")
    return page


def _counts(result: dict[str, Any]) -> str:
    counts, prompts = result["counts"], result["prompts"]
    rows = "".join(
        f"<tr><td>{counts[kind]} {kind}<td>“{html.escape(prompt)}”<td>{HINTS[kind]}" for kind, prompt in prompts.items()
    )
    hidden, unlabeled = counts["hidden"], counts["normal"] + counts["hidden"]
    model = html.escape(result["settings"]["base"])
    return (
        f"<p>Images made by <b>{model}</b> to train on.</p><table>{rows}</table>"
        f"<p class=big>prior: {result['prior']:.4g} ({hidden} of {unlabeled} unlabeled images are sensitive)</p>"
    )


def _pictures(out: Path) -> str:
    data = base64.b64encode((out / "sheet.png").read_bytes()).decode()
    return (
        "<h2>Do they show what they should?</h2><p>The first of each kind. What they show is what is learned: images "
        "that do not fit their prompt are better moved away before training. "
        f"</p><img src='data:image/png;base64,{data}' alt='contact sheet'>"
        "<p><code>manifest.jsonl</code> says of every file which kind it is and how it was made; so does the text in "
        "each PNG. The trainer reads neither.</p>"
    )


def _usage(result: dict[str, Any]) -> str:
    advice = ""
    if result["prompts"]["sensitive"] != result["prompts"]["normal"]:
        prompt = html.escape(result["prompts"]["sensitive"])
        advice = f'<p>With <code>--sensitive-prompt "{prompt}"</code> that prompt is unlearned, too.</p>'
    return f"<h2>Train on them</h2><pre>{html.escape(result['train'])}</pre>{advice}"


def _table(values: dict[str, Any]) -> str:
    shown = {name.replace("_", " "): value for name, value in values.items() if value not in ("", None)}
    return "<table>" + "".join(f"<tr><td>{n}<td>{html.escape(str(v))}" for n, v in shown.items()) + "</table>"
