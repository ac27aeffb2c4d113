"""Writes self-contained HTML pages from templates/: all text is escaped, all pictures are embedded."""

import base64
import functools
from pathlib import Path
from typing import Any

from PIL import Image

from ..common.files import write_text

TEMPLATES = Path(__file__).with_name("templates")


def save(path: Path, template: str, **values: Any) -> None:
    """Write one page.

    Args:
        template: the name of a file in templates/.
        values: what the template shows; `title` is the name of the page.
    Raises: jinja2.UndefinedError if the template shows a value that is not given.
    """
    write_text(path, _environment().get_template(template).render(**values).strip() + "\n")


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "embedded": embedded}
    return environment


def percent(share: float, digits: int = 1) -> str:
    """Return a share as text such as "98.8 %"."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def embedded(path: Path) -> dict[str, Any]:
    """Return a PNG file as a data URI (src), with its width and height in pixels."""
    with Image.open(path) as image:
        width, height = image.size
    data = base64.b64encode(path.read_bytes()).decode()
    return {"src": f"data:image/png;base64,{data}", "width": width, "height": height}
