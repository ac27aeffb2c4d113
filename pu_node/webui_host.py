"""Connect the page with A1111 or Forge: their checkpoints, LoRA folder, lock and GPU memory.

Their modules are imported when they are needed: importing this one needs no webui.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .page_host import Host
from .training_job import Job

POLL_S = 0.5


@functools.lru_cache(maxsize=1)
def job() -> Job:
    """Return the webui's one training; it survives "Reload UI", which builds the page again."""
    from modules import shared
    from modules.paths_internal import data_path

    data = Path(data_path).absolute()
    given = getattr(shared.cmd_opts, "pu_unlearn_allow_dir", None)  # absent until the first restart
    roots = [Path(folder).absolute() for folder in given or [data]]
    number = getattr(shared.cmd_opts, "device_id", None)  # of the card that the webui uses
    device = "auto" if number is None else f"cuda:{number}"
    return Job(Host(checkpoints, roots, data / "outputs" / "pu_unlearn", lora_folder, card, rescan, device))


def checkpoints() -> dict[str, Path]:
    """Return the webui's own list: name -> file."""
    from modules import sd_models

    return {info.name: Path(info.filename) for info in sd_models.checkpoints_list.values()}


def rescan() -> None:
    from modules import sd_models

    sd_models.list_models()


def lora_folder() -> Path:
    from modules import shared

    return Path(shared.cmd_opts.lora_dir)


@contextlib.contextmanager
def card(check: Callable[[], None]) -> Iterator[None]:
    """Reserve the graphics card: unload the webui's model and make picture requests wait until the training ends.

    Args: check: called while the webui generates pictures; an exception from it ends the waiting.
    """
    from modules.call_queue import queue_lock

    while not queue_lock.acquire(blocking=False):
        check()
        time.sleep(POLL_S)
    with contextlib.ExitStack() as back:  # each of these runs even if another raises
        back.callback(queue_lock.release)
        check()
        back.callback(_refresh)
        back.callback(_load)
        _unload()
        yield


def _unload() -> None:
    try:
        from backend import memory_management  # Forge
    except ImportError:
        from modules import sd_models

        if sd_models.model_data.sd_model is not None:
            sd_models.unload_model_weights()
    else:
        memory_management.unload_all_models()


def _load() -> None:
    """Move the model back: A1111 from 1.6 on does not do it by itself; older versions and Forge load on demand."""
    from modules import sd_models, shared

    if hasattr(sd_models, "send_model_to_device") and sd_models.model_data.sd_model is not None:
        sd_models.send_model_to_device(shared.sd_model)


def _refresh() -> None:
    """Refresh the list of LoRAs, so that prompts can use the new one at once."""
    from modules import ui_extra_networks

    for page in ui_extra_networks.extra_pages:
        if page.name == "lora":
            page.refresh()
