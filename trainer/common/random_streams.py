"""Random numbers as a pure function of a key: the same after a resume, for every split and on every device."""

import numpy as np

# Streams that must not touch each other.
ORDER, NOISE, CAPTION, VIEW, SPLIT, CROP, NAMES, SHUFFLE = range(8)


def rng(*key: int) -> np.random.Generator:
    """Return the generator that belongs to a key, such as (seed, stream, step, position)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
