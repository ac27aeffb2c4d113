"""Near-duplicates by a perceptual hash: rescaled, recompressed or lightly edited copies of an image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.decoding import decode

HASH_SIDE = 16  # the hash has HASH_SIDE**2 = 256 bits
MAX_DIFFERING_BITS = 26  # a tenth: re-encoding changes a few bits, another picture about half of them


def near_duplicates(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Find pairs of images whose hashes differ in at most MAX_DIFFERING_BITS. Returns: pairs, in the order of paths."""
    import imagehash

    bits = [imagehash.phash(decode(path).image.convert("L"), hash_size=HASH_SIDE).hash.ravel() for path in paths]
    signs = np.where(np.array(bits), 1, -1).astype(np.int32)
    pairs = []
    for i, row in enumerate(signs):
        differing = (HASH_SIDE**2 - signs[i + 1 :] @ row) // 2
        pairs += [(paths[i], paths[i + 1 + int(j)]) for j in np.flatnonzero(differing <= MAX_DIFFERING_BITS)]
    return pairs
