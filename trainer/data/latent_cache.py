"""Encode images and captions to latents and text states on disk: first the VAE, then the text encoder, each freed."""

import contextlib
import errno
import gc
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
from ..common.host_memory import free_ram_mib
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


def hold(encoded: Encoded, *, most_mib: float | None = None) -> Held:
    """Read all latents and text states into memory, or where they are too large for it, into one mapped file.

    Args: most_mib: of memory; SHARE_OF_RAM of what is free if None.
    Raises: FileNotFoundError if one has been removed or damaged since it was encoded. OSError if the disk is full.
    """
    most = SHARE_OF_RAM * free_ram_mib() if most_mib is None else most_mib
    keys = list(dict.fromkeys([*encoded.latent_keys.values(), *encoded.text_keys.values()]))
    shapes = {key: encoded.store.require(key).shape for key in keys}
    total = sum(shape.numel() for shape in shapes.values())
    values = (encoded.store.require(key) for key in keys)
    if 4 * total <= most * 2**20:
        flat = torch.empty(total)
        for place, value in zip(flat.split([shape.numel() for shape in shapes.values()]), values, strict=True):
            place.copy_(value.flatten())
    else:
        flat = _mapped(encoded.store.folder / f"held-{os.getpid()}.bin", values, total)
    parts = flat.split([shape.numel() for shape in shapes.values()])
    kept = {key: part.view(shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}
    return Held(
        {which: kept[key] for which, key in encoded.latent_keys.items()},
        {caption: kept[key] for caption, key in encoded.text_keys.items()},
    )


def _mapped(path: Path, values: Iterable[Tensor], total: int) -> Tensor:
    """Write fp32 tensors one after the other and map the file, which is gone from the folder where the system allows.

    Written first and mapped then: a map's own writes would end the process where the disk is full.
    """
    with open(path, "wb") as file:
        for value in values:
            file.write(value.contiguous().numpy().data)
    flat = torch.from_file(str(path), shared=False, size=total, dtype=torch.float32)
    with contextlib.suppress(OSError):  # Windows keeps a mapped file; it goes with the run's cache
        path.unlink()
    return flat


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
        _free()

    @torch.no_grad()
    def _encode_captions(self, missing: dict[str, str], store: Store, progress: Progress) -> None:
        tokenizer, encoder = base_model.load_text_encoder(self.base, torch.float32)
        encoder.to(self.device)
        for done, (key, caption) in enumerate(missing.items()):
            progress("captions", done, len(missing))
            states = text_states(tokenizer, encoder, [caption], self.clip_skip, max_tokens=self.max_tokens)
            store.put(key, states[0].cpu())
        del tokenizer, encoder
        _free()


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


def _free() -> None:
    """Give a model's memory back before the next one loads."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
