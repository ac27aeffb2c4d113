"""ICC profiles written from their specification (ICC.1:2001-04), as nobody's own may be copied here."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# columns: the primaries' XYZ adapted to D50, as in the published profiles
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(fixed, values))


def curve(values: np.ndarray) -> bytes:
    """A tone curve from a table of values 0 to 1."""
    return b"curv" + bytes(4) + struct.pack(">I", len(values)) + np.round(values * 65535).astype(">u2").tobytes()


def gamma(exponent: float) -> np.ndarray:
    return np.linspace(0, 1, 1024) ** exponent


def srgb_curve() -> np.ndarray:
    x = np.linspace(0, 1, 1024)
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def profile(space: bytes, pcs: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    texts = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), b"cprt": b"text" + bytes(4)}
    tags = {**texts, b"wtpt": xyz(D50), **tags}
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"test", 0x02400000, kind, space, pcs)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(fixed, D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def rgb(primaries: tuple, tone: np.ndarray) -> bytes:
    columns = {name + b"XYZ": xyz(column) for name, column in zip((b"r", b"g", b"b"), primaries, strict=True)}
    return profile(b"RGB ", b"XYZ ", {**columns, **{name + b"TRC": curve(tone) for name in (b"r", b"g", b"b")}})


def grey(tone: np.ndarray) -> bytes:
    return profile(b"GRAY", b"XYZ ", {b"kTRC": curve(tone)})


def cmyk(inks: dict[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """A press whose inks, each full or not at all, look as the Lab colours say; those not named are black."""
    grid = [inks.get((c, m, y, k), (0, 0, 0)) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    colours = [round(v) for lightness, a, b in grid for v in (lightness * 2.55, a + 128, b + 128)]
    straight = bytes(range(256))
    identity = b"".join(fixed(float(i == j)) for i in range(3) for j in range(3))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + straight * 4 + bytes(colours) + straight * 3
    return profile(b"CMYK", b"Lab ", {b"A2B0": lut, b"A2B1": lut}, kind=b"prtr")
