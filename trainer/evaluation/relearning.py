"""How easily what was unlearned comes back: a short relearning, and a word learned anew (textual inversion).

Both are tried on the base model too: what an attack does there says how strong the attack is.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..config.train_config import TrainConfig
from ..data.folders import scan
from ..data.images import save_images
from ..models.base_model import Base
from ..reporting.events import Progress
from ..reporting.run_dir import RunDir
from ..training import context, run
from ..training.before_after import maker

LOOKS = 5  # pictures are made this often during a relearning


def relearn(
    base: Base,
    lora: Path | None,
    sensitive: Path,
    folder: Path,
    *,
    prompt: str,
    config: TrainConfig,
    seeds: Sequence[int],
    progress: Progress,
) -> list[tuple[int, list[Path]]]:
    """Train plainly on the sensitive images, from the LoRA or from the base model, and look five times.

    Args: config: settings of the attack: steps, lr, resolution, sampler. folder: for the run and the pictures.
    Returns: (steps, pictures) at each look.
    """
    shutil.rmtree(folder, ignore_errors=True)
    every = max(1, config.steps // LOOKS)
    changes: dict[str, Any] = {
        "objective": "unsupervised",
        "unlabeled": sensitive,
        "prompt": prompt,
        "init_lora": lora,
        "sample_every": every,
        "output_dir": folder,
    }
    if lora:
        changes |= {"rank": lora_rank(lora), "alpha": None}
    config = TrainConfig(**{**config.model_dump(), **changes})
    folders = scan(sensitive, None, prompt=prompt, sensitive_prompt=None, skip_bad_images=True, seed=0)
    # what is looked for must come back under the prompt that is measured, whatever captions lie beside the images
    folders = replace(folders, unlabeled=[replace(sample, caption=prompt) for sample in folders.unlabeled])
    looks: list[tuple[int, list[Path]]] = []

    def look(so_far: context.TrainedModel, step: int) -> None:
        images = maker(config, so_far, check=lambda: progress("relearn", step, config.steps))(prompt, list(seeds))
        looks.append((step, save_images(images, folder / f"step{step:05d}", seeds)))

    def emit(event: str, **fields: Any) -> None:
        if event == "step":
            progress("relearn", fields["step"], config.steps)

    with _no_failed_looks(look) as safe_look:
        trained = run.run(
            config,
            base,
            folders,
            RunDir(folder, "run"),
            is_resume=False,
            emit=emit,
            check=lambda: None,
            picture=safe_look,
        )
        safe_look(trained, config.steps)
    return looks


@contextlib.contextmanager
def _no_failed_looks(look: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """train.run takes a failed picture lightly; a measurement must not. Raises what the first failed look raised."""
    failed: list[BaseException] = []

    def safe(*arguments: Any) -> None:
        try:
            look(*arguments)
        except BaseException as error:
            failed.append(error)
            raise

    yield safe
    if failed:
        raise failed[0]


def lora_rank(lora: Path) -> int:
    """The rank of a LoRA file's first module."""
    with safe_open(lora, "pt") as file:
        name = next(key for key in file.keys() if key.endswith("lora_down.weight"))  # noqa: SIM118
        return file.get_slice(name).get_shape()[0]
