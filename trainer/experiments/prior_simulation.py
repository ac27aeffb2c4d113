"""How good `--prior auto` is where the truth is known: simulated scores, and the built-in digits (docs/results.md).

    python -m trainer.experiments.prior_simulation run [--only simulated|digits] [--draws N]    skips what is done
    python -m trainer.experiments.prior_simulation table                                        prints the tables

Simulated: scores of normal and of sensitive images in eight shapes, shifted until the AUC is as wanted. Digits:
features of the built-in model; each draw takes other images of those that it was not trained on. Each cell of the grid
is one line of prior.jsonl, with the seed of each draw fixed: an interruption loses nothing.
"""

import argparse
import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..builtin import MODEL, digits
from ..objective import class_prior

GUESS = 0.2  # what every estimate must beat
AUCS = (0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SIZES = ((40, 5), (80, 20), (400, 20), (400, 80), (2000, 300), (5000, 500))  # unlabeled, sensitive
DIGIT_SHARES = (0.05, 0.1, 0.2, 0.4)
DIGIT_SIZES = ((40, 10), (80, 20), (400, 20), (400, 40), (400, 100))
FIRST_SEED = {"simulated": 0, "digits": 1000}  # of draws that no choice in class_prior.py was made on
SENSITIVE_DIGITS = ((1, 3, 5, 7, 9), (3, 5), (4,), (7,))

Draw = Callable[[np.random.Generator, int], np.ndarray]


def _normal(width: float = 1.0) -> Draw:
    return lambda rng, n: width * rng.standard_normal(n)


def _two(gap: float, share_low: float) -> Draw:
    return lambda rng, n: rng.standard_normal(n) - gap * (rng.random(n) < share_low)


def _skewed(sign: int) -> Draw:
    return lambda rng, n: sign * rng.gamma(2.0, 0.7, n)


SHAPES: dict[str, tuple[Draw, Draw]] = {  # of normal and of sensitive images, before the latter are shifted
    "normal": (_normal(), _normal()),
    "normal images alike": (_normal(0.6), _normal()),
    "normal images varied": (_normal(1.3), _normal()),
    "heavy tails": (lambda rng, n: rng.logistic(size=n), lambda rng, n: rng.logistic(size=n)),
    "tail towards sensitive": (_skewed(1), _normal()),
    "tail towards normal": (_normal(), _skewed(-1)),
    "some normal near": (_two(1.5, 0.7), _normal()),
    "some sensitive far": (_normal(), _two(2.0, 0.3)),
}


@dataclass(frozen=True)
class Cell:
    """One place of the grid, and what was found there."""

    kind: str  # "simulated" or "digits"
    what: str  # shape, or the sensitive digits
    auc: float  # as simulated; on digits the mean of the estimates'
    share: float
    n_unlabeled: int
    n_sensitive: int
    values: list[float]
    lows: list[float]
    highs: list[float]
    best_bins: list[float]

    @property
    def place(self) -> tuple:
        return self.kind, self.what, self.share, self.n_unlabeled, self.n_sensitive, self.kind == "digits" or self.auc


@functools.cache
def shift(shape: str, auc: float) -> float:
    """Return by how much sensitive scores must be shifted for this AUC (bisection on 20,000 draws)."""
    rng = np.random.default_rng(0)
    normal, sensitive = (draw(rng, 20_000) for draw in SHAPES[shape])
    normal.sort()
    low, high = -10.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        is_too_low = np.searchsorted(normal, sensitive + middle).mean() / len(normal) < auc
        low, high = (middle, high) if is_too_low else (low, middle)
    return low


def simulated(shape: str, auc: float, share: float, size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores. Returns: (scores [n], which are labeled sensitive [n])."""
    rng = np.random.default_rng([seed, list(SHAPES).index(shape), round(1000 * auc), round(1000 * share), *size])
    n_unlabeled, n_sensitive = size
    hidden = round(share * n_unlabeled)
    normal, sensitive = SHAPES[shape]
    scores = np.concatenate(
        [sensitive(rng, n_sensitive + hidden) + shift(shape, auc), normal(rng, n_unlabeled - hidden)]
    )
    return 1 / (1 + np.exp(-scores)), np.arange(len(scores)) < n_sensitive


def from_digits(sensitive: tuple, share: float, size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw digits and score them as an audit does. Returns: as simulated. Raises: ValueError if there are too few."""
    values, labels = digit_features()
    rng, n_unlabeled, n_sensitive = np.random.default_rng(seed), *size
    hidden = round(share * n_unlabeled)
    found = np.isin(labels, sensitive)
    ours, others = rng.permutation(np.flatnonzero(found)), rng.permutation(np.flatnonzero(~found))
    if len(ours) < hidden + n_sensitive or len(others) < n_unlabeled - hidden:
        raise ValueError("too few digits")
    chosen = np.concatenate([ours[: hidden + n_sensitive], others[: n_unlabeled - hidden]])
    is_sensitive = np.arange(len(chosen)) >= len(chosen)
    is_sensitive[hidden : hidden + n_sensitive] = True
    return class_prior.cross_fit(values[chosen], is_sensitive, seed=seed), is_sensitive


@functools.cache
def digit_features() -> tuple[np.ndarray, np.ndarray]:
    """Return the built-in model's features [1500, d] of the digits it was not trained on, and their labels."""
    import torch
    from PIL import Image

    from ..audit.features import Images, unet_features
    from ..data.folders import Sample
    from ..data.latent_cache import LatentCache
    from ..memory.memory_plan import MemoryPlan
    from ..models.base_model import Base

    parts = [digits.load(name) for name in ("folders", "held_out")]
    with tempfile.TemporaryDirectory() as name:
        samples = []
        for i, image in enumerate(np.concatenate([digits.render(part.images) for part in parts])):
            samples.append(Sample(Path(name) / f"{i:04d}.png", None))
            Image.fromarray(image).save(samples[-1].path)
        cache = LatentCache(Base(MODEL), Path(name) / "cache", digits.SIZE_PX, bucket=True, device=torch.device("cpu"))
        values = unet_features(Images(cache, samples, MemoryPlan("fp32", "fp32"), lambda *_: None))
    return values, np.concatenate([part.labels for part in parts])


def measure(kind: str, what: str, auc: float, share: float, size: tuple[int, int], draws: Iterable) -> Cell:
    """Estimate the prior of each draw of (scores, is_sensitive)."""
    draws = list(draws)
    found = [class_prior.estimate(*draw, seed=seed) for seed, draw in enumerate(draws)]
    if kind == "digits":
        auc = float(np.mean([p.auc for p in found]))
    best_bins = [class_prior.best_bin(scores[~labeled], scores[labeled]) for scores, labeled in draws]
    columns = [[p.value for p in found], [p.low for p in found], [p.high for p in found], best_bins]
    return Cell(kind, what, auc, share, *size, *([round(x, 4) for x in column] for column in columns))


def run(file: Path, only: str, n_draws: int) -> None:
    """Measure every cell that the file does not hold yet."""
    done = {cell.place for cell in load(file)}
    file.parent.mkdir(parents=True, exist_ok=True)
    for kind, what, auc, share, size in _grid():
        if only not in ("", kind) or (kind, str(what), share, *size, kind == "digits" or auc) in done:
            continue
        seeds = range(FIRST_SEED[kind], FIRST_SEED[kind] + n_draws)
        try:
            if kind == "digits":
                draws = [from_digits(what, share, size, seed) for seed in seeds]
            else:
                draws = [simulated(what, auc, share, size, seed) for seed in seeds]
        except ValueError:  # not so many sevens
            continue
        cell = measure(kind, str(what), auc, share, size, draws)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(cell)) + "\n")


def _grid() -> Iterable[tuple]:
    for size, auc, share, shape in itertools.product(SIZES, AUCS, SHARES, SHAPES):
        yield "simulated", shape, auc, share, size
    for what, size, share in itertools.product(SENSITIVE_DIGITS, DIGIT_SIZES, DIGIT_SHARES):
        yield "digits", what, 0.0, share, size


def load(file: Path) -> list[Cell]:
    """Return the cells that were measured."""
    if not file.is_file():
        return []
    return [Cell(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def table(cells: list[Cell], key: Callable[[Cell], tuple], names: tuple[str, ...]) -> str:
    """Return a table in Markdown, a row for each value of key."""
    lines = [
        f"| {' | '.join(names)} | inside | lowest cell | width | mean error | best-bin's | of saying 0.2 | draws |"
    ]
    lines.append("|---" * (len(names) + 7) + "|")
    for value in dict.fromkeys(map(key, cells)):
        group = [cell for cell in cells if key(cell) == value]
        lines.append("| " + " | ".join([*map(str, value), *_figures(group)]) + " |")
    return "\n".join(lines)


def _figures(cells: list[Cell]) -> list[str]:
    inside = [np.mean((np.array(c.lows) <= c.share) & (c.share <= np.array(c.highs))) for c in cells]
    width = np.mean([np.subtract(c.highs, c.lows).mean() for c in cells])
    errors = [
        np.mean([np.abs(np.array(found) - c.share).mean() for c in cells for found in (getattr(c, name),)])
        for name in ("values", "best_bins")
    ]
    guess = np.mean([abs(GUESS - c.share) for c in cells])
    shown = [f"{x:.3f}" for x in (*errors, guess)]
    return [
        f"{np.mean(inside):.2f}",
        f"{min(inside):.2f}",
        f"{width:.2f}",
        *shown,
        str(sum(len(c.values) for c in cells)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--only", choices=("", "simulated", "digits"), default="")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("output/experiments/prior.jsonl"))
    options = parser.parse_args()
    if options.command == "run":
        run(options.out, options.only, options.draws)
    cells = load(options.out)
    by_kind = {kind: [c for c in cells if c.kind == kind] for kind in ("simulated", "digits")}
    rows: dict[str, list[tuple[Callable[[Cell], tuple], tuple[str, ...]]]] = {
        "simulated": [
            (lambda c: (c.auc, c.share), ("AUC", "share")),
            (lambda c: (f"{c.n_unlabeled}, {c.n_sensitive}",), ("unlabeled, sensitive",)),
            (lambda c: (c.what,), ("shape",)),
        ],
        "digits": [(lambda c: (f"{c.n_unlabeled}, {c.n_sensitive}", c.share), ("unlabeled, sensitive", "share"))],
    }
    for kind, found in by_kind.items():
        for key, names in rows[kind] if found else []:
            print(f"\n{kind}\n\n{table(found, key, names)}")


if __name__ == "__main__":
    main()
