"""Images that are nearly the same, by a perceptual hash: rescaled, recompressed or lightly edited copies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

HASH_SIDE = 16  # 256 bits
NEAR = 26  # bits that may differ, a tenth: re-encoding changes a few, another picture about half


def near_duplicates(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs, each in the order of paths."""
    import imagehash
    from PIL import Image

    bits = []
    for path in paths:
        with Image.open(path) as image:
            bits.append(imagehash.phash(image.convert("L"), hash_size=HASH_SIDE).hash.ravel())
    signs = np.where(np.array(bits), 1, -1).astype(np.int32)
    found = []
    for i, row in enumerate(signs):
        differing = (HASH_SIDE**2 - signs[i + 1 :] @ row) // 2
        found += [(paths[i], paths[i + 1 + j]) for j in np.flatnonzero(differing <= NEAR)]
    return found
