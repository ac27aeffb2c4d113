"""Give the nodes ComfyUI's folders, pictures and progress. Imported when a node runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import launch, result_cache, widgets
from .widgets import DEMO

PREVIEW_PX = 768  # no less than the longer side of drawing.live: ComfyUI would make it smaller


def output_root() -> Path:
    """Return the folder of all runs, below ComfyUI's output folder."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "pu_unlearn"


def lora_folder() -> Path:
    """Return a folder whose files LoraLoader lists."""
    import folder_paths

    return Path(folder_paths.get_output_directory()) / "loras"


def made_folder() -> Path:
    """Return the folder of what is made of a graph's images for a training; ComfyUI empties it when it starts."""
    import folder_paths

    return Path(folder_paths.get_temp_directory()).resolve() / "pu_unlearn"


def demo_lora_folder() -> Path:
    """Return the folder of the demo's LoRAs, which fit no model of ComfyUI; its name is shown in every list."""
    return lora_folder() / "pu_unlearn_demo"


def free_name(name: str, folder: Path) -> str:
    """Return the first of name, name-2, name-3, … that names no run and no LoRA that ComfyUI lists.

    Args: folder: where the LoRA will be put.
    """
    import folder_paths

    listed = {Path(file).with_suffix("").as_posix() for file in folder_paths.get_filename_list("loras")}
    return result_cache.free_name(name, taken=(output_root(), folder), names=listed)


def digests() -> result_cache.Digests:
    """Return the hashes of files that were read before."""
    return result_cache.Digests(output_root() / "digests.json")


def fingerprint(*folders: Path) -> str:
    """Return the hash of the names and contents in folders: ComfyUI runs a node again where it has changed."""
    known = digests()
    found = " ".join(known.of(folder) for folder in folders)
    known.save()
    return found


def stamp(path: Path | None) -> str:
    """Return the size and time of a file, such as a checkpoint, that is too big to be read with every Run."""
    if path is None or not path.exists():
        return ""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def input_folders() -> list[str]:
    import folder_paths

    return sorted(folder_paths.get_input_subfolders())


def refusal(look: Callable[[], object]) -> bool | str:
    """Return what a node's validate_inputs returns: True, or why the value is refused."""
    try:
        look()
    except ValueError as error:
        return str(error)
    return True


def input_folder(name: str, widget: str = "folder") -> Path:
    """Return a subfolder of ComfyUI's input folder. Raises: ValueError, which names the widget, for any other name.

    A workflow, and so any web page that can reach the server, may send any text as the name.
    """
    import folder_paths

    root = Path(folder_paths.get_input_directory()).resolve()
    found = (root / name).resolve()
    if name not in input_folders() or root not in found.parents or not found.is_dir():
        raise ValueError(f"{widget}: {name!r} is no subfolder of ComfyUI's input folder ({root})")
    return found


def new_input_folder(name: str) -> Path:
    """Return a subfolder of ComfyUI's input folder, existing or not. Raises: ValueError for a name of another place."""
    import folder_paths

    root = Path(folder_paths.get_input_directory()).resolve()
    found = (root / safe_name(name, "folder")).resolve()
    if found.parent != root:  # a link
        raise ValueError(f"folder: {name!r} is no subfolder of ComfyUI's input folder ({root})")
    return found


def checkpoint(name: str) -> Path | None:
    """Return the file of a checkpoint, listed or made of a model; None for the built-in demo.

    Raises: ValueError for any other name.
    """
    if name == DEMO:
        return None
    import folder_paths

    made = Path(name)  # not resolved: on Windows that would contact the host in a name such as \\host\share
    if made_folder() / "checkpoints" == made.parent and made.suffix == ".safetensors" and made.is_file():
        return made
    if name not in folder_paths.get_filename_list("checkpoints"):
        raise ValueError(f"checkpoint: {name!r} is not in the list of checkpoints; press R if it is new")
    return Path(folder_paths.get_full_path_or_raise("checkpoints", name))


def with_dataset(base: Path | None, dataset: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings that name the model and its images. Args: base: None for the built-in demo.

    Raises: ValueError if model and dataset do not go together.
    """
    if base is None and dataset is None:
        return {}
    if dataset is None:
        raise ValueError("dataset: connect a PU Dataset; only the built-in demo has its own images")
    _check_dataset(dataset)
    if base is not None:
        return {**dataset, "base": str(base)}
    if "base" not in dataset:  # PU Make Data's of the demo name it
        raise ValueError(
            f"checkpoint: {DEMO} learns from its own digits, not from the connected PU Dataset. "
            "Choose your Stable Diffusion checkpoint, or disconnect the dataset to run the demo."
        )
    return dict(dataset)


DATASET = ("unlabeled", "sensitive", "prompt", "sensitive_prompt", "resolution", "skip_bad_images", "base")


def _check_dataset(dataset: Mapping[str, Any]) -> None:
    """Raise ValueError for a dataset of no node: a request may hold any object in place of a link."""
    import folder_paths

    root = Path(folder_paths.get_input_directory()).resolve()
    folders = [Path(str(dataset.get(kind, ""))).resolve() for kind in ("unlabeled", "sensitive")]
    is_inside = all({root, made_folder()} & set(folder.parents) for folder in folders)
    if not is_inside or not set(dataset) <= set(DATASET) or dataset.get("base", "builtin") != "builtin":
        raise ValueError(f"dataset: its folders must lie below ComfyUI's input folder ({root}); connect a PU Dataset")


def lora_file(name: str) -> Path:
    """Return a LoRA's file by its listed name, or by its path in a folder of LoRAs. Raises: ValueError for others."""
    import folder_paths

    if name in folder_paths.get_filename_list("loras"):
        return Path(folder_paths.get_full_path_or_raise("loras", name))
    found = Path(name).resolve()
    roots = [lora_folder().resolve(), *(Path(root).resolve() for root in folder_paths.get_folder_paths("loras"))]
    if not found.is_file() or found.suffix != ".safetensors" or not any(root in found.parents for root in roots):
        raise ValueError(f"{name!r} is no LoRA of this ComfyUI")
    return found


def safe_name(name: str, widget: str = "name") -> str:
    """Return a name if it names no folder. Raises: ValueError, which names the widget, if it does, or is empty."""
    found = Path(name.replace("\\", "/")).name.strip()
    if found != name.strip() or found in ("", ".", ".."):
        raise ValueError(f"{widget}: {name!r} must be a plain name, without folders")
    return found


def image(picture: Image.Image) -> torch.Tensor:
    """Return a picture as ComfyUI's IMAGE: [1, height, width, 3], fp32 in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).astype(np.float32) / 255)[None]


def images(found: Iterable[Image.Image]) -> torch.Tensor:
    """Return pictures of one size as ComfyUI's IMAGE: [n, height, width, 3], fp32 in 0..1."""
    return torch.cat([image(picture) for picture in found])


def opened(path: str | Path) -> Image.Image:
    """Return the picture in a file as RGB."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def picture(tensor: torch.Tensor) -> Image.Image:
    """Return one picture of ComfyUI's, [height, width, 1, 3 or 4] in 0..1, as a Pillow image."""
    pixels = (tensor.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def pictures(batches: torch.Tensor | Sequence[torch.Tensor]) -> list[Image.Image]:
    """Return the pictures of an IMAGE, [n, height, width, 3], or of a list of them, whose sizes may differ."""
    given = [batches] if isinstance(batches, torch.Tensor) else batches
    return [picture(one) for batch in given for one in (batch if batch.ndim == 4 else [batch])]


def check() -> None:
    """Raise ComfyUI's own exception once the user has cancelled."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def make_room() -> None:
    """Take ComfyUI's models off the card, and wait until a cancelled training is off it: the trainer needs it.

    Raises: TrainerError before anything is taken off, if the trainer's packages are not installed.
    """
    import comfy.model_management

    try:
        launch.python(is_checked=True)
    except launch.TrainerError as error:
        say(str(error))
        raise
    launch.wait_for_saving(check)  # of a training that was cancelled: it still has the card
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


class Progress:
    """Progress bar and preview of the running node. Calls raise once the user has cancelled."""

    def __init__(self, total: int) -> None:
        import comfy.utils

        self.total = total
        self._bar = comfy.utils.ProgressBar(total)

    def show(self, done: int, panel: Image.Image | None = None) -> None:
        preview = None if panel is None else ("JPEG", panel, PREVIEW_PX)
        self._bar.update_absolute(done, self.total, preview)


def say(text: str) -> None:
    """Show a text on the running node. Does nothing where ComfyUI is too old for it."""
    with suppress(ImportError, AttributeError):
        from comfy_execution.utils import get_executing_context
        from server import PromptServer

        if context := get_executing_context():
            PromptServer.instance.send_progress_text(text, context.node_id)


def events(words: Sequence[str], settings: Mapping[str, Any]) -> Iterator[launch.Event]:
    """Run a command of the trainer. Yields: its events. A training that is cancelled saves while ComfyUI goes on.

    Raises: TrainerError with the names of widgets in place of the trainer's options.
    """
    trains = not words
    grace_s = launch.SAVING_GRACE_S if trains else launch.GRACE_S
    try:
        yield from launch.follow(launch.command(words, settings), check, grace_s=grace_s, saves_alone=trains)
    except launch.TrainerError as error:
        told = widgets.in_node_words(str(error))
        say(told)  # the page's own message names only the node, until its details are opened
        raise launch.TrainerError(told, error.kind) from None


def answer(command: str, settings: Mapping[str, Any], words: Sequence[str] = ()) -> launch.Event:
    """Run a command of the trainer other than training, under a progress bar. Return its last event, the result.

    Args: words: the command's arguments that have no name.
    """
    progress: Progress | None = None
    event: launch.Event = {}
    for event in events([command, *words], settings):
        if event["event"] == "phase" and event.get("total"):
            if progress is None or progress.total != event["total"]:
                progress = Progress(event["total"])
            progress.show(event["done"])
    return event


def shown_file(path: str | Path) -> list[dict[str, str]]:
    """Return what ComfyUI's page needs to show a picture: nothing if it does not lie below the output folder."""
    import folder_paths

    root = Path(folder_paths.get_output_directory()).resolve()
    found = Path(path).resolve()
    if root not in found.parents:
        return []
    folder = found.parent.relative_to(root).as_posix()
    return [{"filename": found.name, "subfolder": "" if folder == "." else folder, "type": "output"}]


ADDRESS = re.compile(r"(?:(?<=\s)|^)(?:/|[A-Za-z]:[\\/])[^\n;]*?\.html\b")


def with_addresses(text: str) -> str:
    """Return a text with every HTML page as an address that a browser opens: /view would hand it out as a download."""
    return ADDRESS.sub(lambda found: Path(found[0]).as_uri(), text)


def in_words(text: str) -> str:
    """Return what the trainer says of a result as a node shows it."""
    return with_addresses(widgets.in_node_words(text))


def load_lora(path: str | Path) -> dict[str, Any]:
    """Return the tensors of a LoRA file by name."""
    import comfy.utils

    return comfy.utils.load_torch_file(str(path), safe_load=True)
