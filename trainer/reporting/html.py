"""Writes self-contained HTML pages from templates/: all text is escaped, all pictures are embedded."""

import base64
import functools
import hashlib
import io
from pathlib import Path
from typing import Any

from PIL import Image

from ..common.files import write_text

TEMPLATES = Path(__file__).with_name("templates")
SMALL_PX = 128  # wide; such pictures are embedded bit for bit


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
    from markupsafe import Markup  # jinja2's own

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "embedded": embedded}
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}  # no other script can run
    return environment


def percent(share: float, digits: int = 1) -> str:
    """Return a share as text such as "98.8 %"."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def embedded(picture: Path | Image.Image) -> dict[str, Any]:
    """Return a PNG file or a picture as a data URI (src), with its width and height in pixels.

    A large picture becomes a JPEG: a page with dozens of them would have many MiB.
    """
    if isinstance(picture, Path):
        with Image.open(picture) as image:
            return _as_uri(picture.read_bytes(), "png", image)
    kind = "png" if picture.width <= SMALL_PX else "jpeg"
    file = io.BytesIO()
    picture.save(file, kind, quality=90)
    return _as_uri(file.getvalue(), kind, picture)


def _as_uri(data: bytes, kind: str, image: Image.Image) -> dict[str, Any]:
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"src": uri, "width": image.width, "height": image.height}
