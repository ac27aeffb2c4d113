"""PU Dataset: images to train on, and examples of unwanted ones, from folders or from the graph."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from . import dataset_folders, widgets
from .nodes_input import UNLINKED, Dataset

KINDS = ("unlabeled", "sensitive")
NO_FOLDER = "[no subfolder in ComfyUI/input]"
LOOKS_SENSITIVE = ("sensitive", "unwanted", "forget", "remove", "nsfw")  # in a folder's name
LISTS = tuple(f"{kind}_{what}" for kind in KINDS for what in ("images", "captions"))


def _two_folders() -> tuple[list[str], str, str]:
    """Return the folders to choose from, and those that a fresh node has as unlabeled and as sensitive."""
    from .comfy_host import input_folders

    folders = input_folders() or [NO_FOLDER]
    named = [name for name in folders if any(word in name.lower() for word in LOOKS_SENSITIVE)]
    sensitive = (named or folders[1:] or folders)[0]
    return folders, next((name for name in folders if name != sensitive), sensitive), sensitive


def _one(values: Any) -> Any:
    """Return the value of an input that is no list: to a node that takes lists, ComfyUI gives each input as one."""
    return values[0] if isinstance(values, list | tuple) else values


def _is_given(value: Any) -> bool:
    """Whether something came: a link may deliver None, which is in a list like all that comes."""
    return any(one is not None for one in value) if isinstance(value, list | tuple) else value is not None


def _folders(values: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Return the chosen folders of each kind, without the first one where images come through a link.

    None as a value is that of a link, which is checked later. Raises: ValueError with the widget's name.
    """
    from . import comfy_host

    found: dict[str, list[Path]] = {}
    for kind in KINDS:
        first = [] if f"{kind}_images" in values else [(kind, values.get(kind))]
        more = [(f"more_{kind}", name.strip()) for name in (values.get(f"more_{kind}") or "").split("|")]
        named = [*first, *((widget, name) for widget, name in more if name)]
        found[kind] = [comfy_host.input_folder(name, widget) for widget, name in named if name is not None]
    for folder in found["unlabeled"]:
        if folder in found["sensitive"]:
            raise ValueError(f"unlabeled and sensitive: both are {folder.name!r}; choose two folders")
    return found


def _images(kind: str) -> Any:
    return io.Image.Input(
        f"{kind}_images",
        display_name=f"{kind} images",
        optional=True,
        tooltip="Images of the graph, used instead of the folder.",
    )


def _captions(kind: str) -> Any:
    return io.String.Input(
        f"{kind}_captions",
        display_name=f"{kind} captions",
        optional=True,
        force_input=True,
        tooltip="Their captions: a list, or a line for each image; one line is for all.",
    )


def _more(kind: str) -> Any:
    return io.String.Input(
        f"more_{kind}",
        display_name=f"more {kind} folders",
        default="",
        optional=True,
        tooltip="Names of further folders in ComfyUI/input, separated by |.",
    )


class PUDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        folders, unlabeled, sensitive = _two_folders()
        return widgets.schema(
            io,
            node_id="PUDataset",
            display_name="PU Dataset",
            description="Two folders in ComfyUI/input: images to train on, and examples of unwanted images.",
            inputs=[
                io.Combo.Input(
                    "unlabeled",
                    options=folders,
                    default=unlabeled,
                    tooltip="Images to train on. Some may be sensitive.",
                ),
                io.Combo.Input(
                    "sensitive",
                    options=folders,
                    default=sensitive,
                    tooltip="Images like those to unlearn. Twenty are enough.",
                ),
                widgets.make(io, "prompt", default="a photo"),
                widgets.make(io, "sensitive_prompt"),
                io.Int.Input(
                    "resolution", default=512, min=64, max=1024, step=8, tooltip="Training resolution in pixels."
                ),
                io.Boolean.Input(
                    "skip_bad_images",
                    display_name=widgets.LABELS["skip_bad_images"],
                    default=False,
                    tooltip="Ignore images that cannot be read.",
                ),
                _images("unlabeled"),
                _captions("unlabeled"),
                _images("sensitive"),
                _captions("sensitive"),
                _more("unlabeled"),
                _more("sensitive"),
            ],
            is_input_list=True,  # some loaders give each image by itself, as they have different sizes
            outputs=[
                Dataset.Output("dataset", "dataset", tooltip="For PU Unlearn."),
                io.Image.Output("sheet", "sheet", tooltip="The first images of both folders."),
                io.String.Output(
                    "counts", "counts", tooltip="How many images were found, and which were skipped and why."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        unlabeled: Any,
        sensitive: Any,
        unlabeled_images: Any = UNLINKED,
        sensitive_images: Any = UNLINKED,
        more_unlabeled: Any = "",
        more_sensitive: Any = "",
    ) -> bool | str:
        # ComfyUI 0.3 holds no combo of a V3 node against its options
        from . import comfy_host

        links = {"unlabeled_images": unlabeled_images, "sensitive_images": sensitive_images}
        values = {"unlabeled": unlabeled, "sensitive": sensitive}
        values |= {"more_unlabeled": more_unlabeled, "more_sensitive": more_sensitive}
        values = {name: _one(value) for name, value in values.items()}
        values |= {name: link for name, link in links.items() if link is not UNLINKED}
        return comfy_host.refusal(lambda: _folders(values))

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str | float:
        from . import comfy_host

        values = {name: _one(value) for name, value in given.items()}
        if None in [values.get(name, "") for name in (*KINDS, "more_unlabeled", "more_sensitive")]:
            return time.time()  # a link's value is not known here
        try:
            found = _folders(values)
        except ValueError:
            return ""  # told by validate_inputs
        return comfy_host.fingerprint(*found["unlabeled"], *found["sensitive"])

    @classmethod
    def execute(cls, **given: Any) -> io.NodeOutput:
        from . import comfy_host

        given = {name: value for name, value in given.items() if _is_given(value)}
        values = {name: value if name in LISTS else _one(value) for name, value in given.items()}
        folders = _folders(values)
        dataset = {
            **_places(folders, values),
            "prompt": values["prompt"] or None,
            "sensitive_prompt": values["sensitive_prompt"] or None,
            "resolution": values["resolution"],
            "skip_bad_images": values["skip_bad_images"],
        }
        with tempfile.TemporaryDirectory() as folder:
            sheet = Path(folder) / "sheet.png"
            settings = {**dataset, "base": "builtin", "sheet": str(sheet)}
            found = [e for e in comfy_host.events(["data"], settings) if e["event"] == "data"][-1]
            shown = comfy_host.image(comfy_host.opened(sheet))
        return io.NodeOutput(dataset, shown, found["text"])


def _places(folders: Mapping[str, Sequence[Path]], values: Mapping[str, Any]) -> dict[str, str]:
    """Return the one folder of each kind that the trainer reads: the chosen one, or one made of all that is given."""
    from . import comfy_host

    sources = {kind: [*folders[kind], *_written(kind, values)] for kind in KINDS}
    if empty := [kind for kind, given in sources.items() if not given]:
        raise ValueError(f"{empty[0]}: choose a folder, or connect images")
    is_plain = all(len(given) == 1 for given in sources.values())
    found = {}
    for kind, other in zip(KINDS, reversed(KINDS), strict=True):
        own, apart = sources[kind], sources[other]  # one folder may lie inside another of the other kind
        is_one = len(own) == 1 and not any(own[0] in folder.parents for folder in apart)
        joined = own[0] if is_plain or is_one else None
        joined = joined or dataset_folders.of_folders(own, comfy_host.made_folder(), comfy_host.digests(), apart)
        found[kind] = str(joined)
    return found


def _written(kind: str, values: Mapping[str, Any]) -> list[Path]:
    """Return the folder that the images of the graph were written to, if there are any."""
    from . import comfy_host

    if f"{kind}_images" not in values:
        if values.get(f"{kind}_captions"):
            raise ValueError(f"{kind} captions: they belong to {kind} images; connect those, too")
        return []
    captions = values.get(f"{kind}_captions") or []
    texts = [captions] if isinstance(captions, str) else [text or "" for text in captions]
    pictures = comfy_host.pictures(values[f"{kind}_images"])
    try:
        return [dataset_folders.of_images(pictures, texts, comfy_host.made_folder())]
    except ValueError as error:
        raise ValueError(f"{kind} images: {error}") from None
