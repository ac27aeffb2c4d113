"""Encode images and captions to latents and text states on disk: first the VAE, then the text encoder, each freed."""

import contextlib
import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..common.distributed import ONE, Ranks
from ..common.errors import UserError
from ..common.files import replacing, sha256
from ..common.host_memory import free_ram_mib, give_back
from ..common.interrupts import Progress
from ..models import base_model
from ..models.base_model import Base
from ..models.text_states import text_states
from .folders import Sample
from .images import PLAIN, View, read_image, training_size

FORMAT = 2  # raise when the same key would mean another tensor (SMALLEST_CROP, for one)
PIXELS_AT_ONCE = 2**18  # one 512 px image
SHARE_OF_RAM = 0.25  # of what is free: more than that stays in a file, of which the system keeps in memory what it can


@dataclass(frozen=True)
class Store:
    """Tensors on disk under content keys, one file each. A damaged file counts as absent and is made again."""

    folder: Path

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def get(self, key: str) -> Tensor | None:
        try:
            return load_file(self.path(key))["value"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def require(self, key: str) -> Tensor:
        """Read a tensor that was encoded. Raises: FileNotFoundError if it has been removed or damaged since."""
        value = self.get(key)
        if value is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path(key)))
        return value

    def put(self, key: str, value: Tensor) -> None:
        with replacing(self.path(key), durable=False) as temporary:
            save_file({"value": value.contiguous()}, temporary)


@dataclass(frozen=True)
class Encoded:
    """What training reads: latents by (image, view), text states by caption."""

    store: Store
    latent_keys: dict[tuple[Path, View], str]
    text_keys: dict[str, str]

    def latents(self, path: Path, view: View) -> Tensor:
        """Return an image's latents [4, height / 8, width / 8] fp32, scaled as the U-Net expects them."""
        return self.store.require(self.latent_keys[path, view])

    def text(self, caption: str) -> Tensor:
        """Return a caption's text states [max_tokens + 2, width] fp32."""
        return self.store.require(self.text_keys[caption])


@dataclass(frozen=True)
class Held:
    """An `Encoded` whose tensors are all at hand: no file is opened for a sample of a step."""

    _latents: dict[tuple[Path, View], Tensor]
    _text: dict[str, Tensor]

    def latents(self, path: Path, view: View) -> Tensor:
        return self._latents[path, view]

    def text(self, caption: str) -> Tensor:
        return self._text[caption]

    def release(self) -> None:
        """Let go of everything. Windows deletes no file that is still mapped."""
        self._latents.clear()
        self._text.clear()


def hold(encoded: Encoded, *, most_mib: float | None = None, processes: int = 1) -> Held:
    """Read all latents and text states into memory, or where they are too large for it, into one mapped file.

    Args:
        most_mib: of memory; SHARE_OF_RAM of what is free if None.
        processes: that share what is free.
    Raises: FileNotFoundError if one has been removed or damaged since it was encoded. OSError if the disk is full.
    """
    most = SHARE_OF_RAM * free_ram_mib() / processes if most_mib is None else most_mib
    store = encoded.store
    keys = list(dict.fromkeys([*encoded.latent_keys.values(), *encoded.text_keys.values()]))
    if sum(store.path(key).stat().st_size for key in keys) <= most * 2**20:
        kept = {key: store.require(key) for key in keys}
    else:
        kept = _mapped(store, keys)
    return Held(
        {which: kept[key] for which, key in encoded.latent_keys.items()},
        {caption: kept[key] for caption, key in encoded.text_keys.items()},
    )


def _mapped(store: Store, keys: Sequence[str]) -> dict[str, Tensor]:
    """Write fp32 tensors one after the other and map the file, which is gone from the folder where the system allows.

    Written first and mapped then: a map's own writes would end the process where the disk is full.
    """
    _remove_left_behind(store.folder)
    path, shapes = store.folder / f"held-{os.getpid()}.bin", []
    with open(path, "wb") as file:
        for key in keys:
            value = store.require(key)
            shapes.append(value.shape)
            file.write(value.contiguous().numpy().data)
    sizes = [shape.numel() for shape in shapes]
    flat = torch.from_file(str(path), shared=False, size=sum(sizes), dtype=torch.float32)
    with contextlib.suppress(OSError):  # Windows keeps it while it is mapped; see Held.release
        path.unlink()
    return {key: part.view(shape) for key, part, shape in zip(keys, flat.split(sizes), shapes, strict=True)}


def _remove_left_behind(folder: Path) -> None:
    """Remove the files of processes that were killed."""
    import psutil

    for path in folder.glob("held-*.bin"):
        with contextlib.suppress(OSError, ValueError):
            if not psutil.pid_exists(int(path.stem.removeprefix("held-"))):
                path.unlink()


@dataclass(frozen=True)
class LatentCache:
    """Latents and text states of one model on disk, by the hash of image, model, size and format."""

    base: Base
    folder: Path
    resolution: int  # see images.training_size
    bucket: bool
    device: torch.device  # where the VAE and the text encoder run
    clip_skip: int = 1  # which of the text encoder's layers is read
    max_tokens: int = 75  # of a caption

    def encode(
        self,
        samples: Sequence[Sample],
        captions: Iterable[str],
        *,
        views: Sequence[View] = (PLAIN,),
        ranks: Ranks = ONE,
        progress: Progress,
    ) -> Encoded:
        """Encode what the folder does not hold yet: images, then captions.

        Args:
            views: the versions of each image that a step may ask for.
            ranks: the work is shared out over these.
            progress: called before each batch.
        Returns: keys into the folder for every sample and caption.
        Raises: UserError if an image becomes nan (a damaged VAE).
        """
        store = Store(self.folder)
        latent_keys, files = {}, {sample.path: None for sample in samples}
        vae_hash = base_model.part_hash(self.base, "vae")
        sizes = {path: training_size(path, self.resolution, bucket=self.bucket) for path in files}
        for path, size in sizes.items():
            content = sha256(path)
            for view in views:
                latent_keys[path, view] = _key("latent", content, vae_hash, size, view)
        for missing in _shares(ranks, store, {key: item for item, key in latent_keys.items()}):
            self._encode_images(missing, sizes, store, progress)
        text_hash = base_model.part_hash(self.base, "text_encoder")
        text_keys = {caption: _key("text", caption, text_hash, self.clip_skip, self.max_tokens) for caption in captions}
        for missing in _shares(ranks, store, {key: caption for caption, key in text_keys.items()}):
            self._encode_captions(missing, store, progress)
        return Encoded(store, latent_keys, text_keys)

    @torch.no_grad()
    def _encode_images(self, missing: dict, sizes: dict, store: Store, progress: Progress) -> None:
        vae: Any = base_model.load_vae(self.base, torch.float32).to(self.device)
        done = 0
        by_size = sorted(missing.items(), key=lambda entry: sizes[entry[1][0]])
        for batch in _alike(by_size, lambda entry: sizes[entry[1][0]]):
            progress("images", done, len(missing))
            pixels = np.stack([read_image(path, sizes[path], view) for _, (path, view) in batch])
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device, torch.float32) / 127.5 - 1
            latents = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
            for (key, (path, _)), value in zip(batch, latents.cpu(), strict=True):
                if not value.isfinite().all():
                    raise UserError(f"{path}: the VAE makes nan of this image; is the model's VAE damaged?")
                store.put(key, value)
            done += len(batch)
        progress("images", done, len(missing))
        del vae
        give_back()

    @torch.no_grad()
    def _encode_captions(self, missing: dict[str, str], store: Store, progress: Progress) -> None:
        tokenizer, encoder = base_model.load_text_encoder(self.base, torch.float32)
        encoder.to(self.device)
        for done, (key, caption) in enumerate(missing.items()):
            progress("captions", done, len(missing))
            states = text_states(tokenizer, encoder, [caption], self.clip_skip, max_tokens=self.max_tokens)
            store.put(key, states[0].cpu())
        del tokenizer, encoder
        give_back()


def _shares(ranks: Ranks, store: Store, items: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what this rank has to encode: its share of the missing items, then those on other machines' disks."""
    missing = [key for key in items if store.get(key) is None]
    ranks.wait()  # all have looked before anyone writes
    if mine := ranks.share(missing):
        yield {key: items[key] for key in mine}
    ranks.wait()
    if rest := [key for key in missing if store.get(key) is None]:
        yield {key: items[key] for key in rest}


def _key(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, (FORMAT, *parts))).encode()).hexdigest()


def _alike(items: list, size_of: Callable[[Any], tuple[int, int]]) -> Iterator[list]:
    """Group items of one size, as many as PIXELS_AT_ONCE allows. Args: items: sorted by size."""
    for (width, height), group in itertools.groupby(items, size_of):
        same = list(group)
        count = max(1, PIXELS_AT_ONCE // (width * height))
        yield from (same[i : i + count] for i in range(0, len(same), count))
