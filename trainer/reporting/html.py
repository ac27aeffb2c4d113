"""Self-contained HTML pages: every command's report. All text is escaped here."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..common.files import write_text

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c2330}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d9dee7}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1.5rem}.pair img{width:100%;image-rendering:pixelated}
figure{margin:0}figcaption{color:#566}img{max-width:100%}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top}
.big{font-size:1.25rem}pre{background:#f3f5f9;padding:.8rem;overflow:auto;border-radius:.3rem}
.warn{background:#fff4dd;padding:.6rem .9rem;border-radius:.3rem}
"""


def save(path: Path, title: str, parts: Iterable[str]) -> None:
    """Args: parts: made by the functions below."""
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    body = f"<h1>{html.escape(title)}</h1>" + "".join(parts)
    write_text(path, f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n")


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def says(text: str, *, is_warning: bool = False) -> str:
    return f"<p{' class=warn' if is_warning else ''}>{html.escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    top = "".join(f"<th>{html.escape(name)}" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in rows)
    return f"<table>{f'<tr>{top}' if head else ''}{body}</table>"


def picture(path: Path, caption: str = "") -> str:
    text = html.escape(caption)
    image = f"<img src='{inline(path)}' alt='{text or html.escape(path.stem)}'>"
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def pair(pictures: Iterable[str]) -> str:
    """Two pictures side by side."""
    return f"<div class=pair>{''.join(pictures)}</div>"


def code(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
