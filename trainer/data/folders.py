"""Two folders of images become lists of samples: what is read, held out, or skipped and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import UserError
from ..common.random_streams import SPLIT, rng
from ..common.wording import counted
from .captions import describe_cleaning, describe_syntax, read_caption, with_affixes
from .decoding import fault
from .listing import Listing, copies, list_folder

HELD_OUT_SHARE = 0.1
MIN_HELD_OUT = 2


@dataclass(frozen=True)
class Sample:
    path: Path
    caption: str | None  # of the image itself: a file beside it, or what applies to its folder; None: none of its own
    repeats: int = 1  # how often it is shown beside others of its folder

    @property
    def own_caption(self) -> str:
        """The caption of a sample that has one, as all unlabeled ones have: see scan."""
        assert self.caption is not None, f"{self.path}: no caption"
        return self.caption


@dataclass(frozen=True)
class Folders:
    """What was found on disk."""

    unlabeled: list[Sample]
    sensitive: list[Sample]
    held_out: list[Sample]  # sensitive, never trained on
    skipped: list[str]  # one sentence for each image left out
    notes: list[str] = field(default_factory=list)  # sentences about whole folders: what was not used, cleaned, doubled


@dataclass(frozen=True)
class Reading:
    """How the two folders are read."""

    prompt: str | None = None  # caption of unlabeled images without a caption file
    sensitive_prompt: str | None = None  # the same for sensitive ones, which may also go without
    skip_bad_images: bool = False  # leave out what cannot be read; otherwise that is an error
    exclude: Path | None = None  # text file that names unlabeled images to leave out
    is_recursive: bool = True  # with sub-folders
    has_repeats: bool = True  # the number of a sub-folder `10_name` counts
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    apart: Mapping[Path, str] = field(default_factory=dict)  # folders that do not belong to them, with the reason


def scan(unlabeled: Path, sensitive: Path | None, reading: Reading, *, seed: int) -> Folders:
    """List and check the images of both folders.

    Args:
        sensitive: may be None where the objective does not need it.
        seed: decides which sensitive images are held out.
    Raises: UserError naming every bad image, an empty folder, or images without any caption.
    """
    listings = _list(unlabeled, sensitive, reading)
    left_out = _excluded(reading.exclude, listings["unlabeled"].images) if reading.exclude else set()
    found = {kind: [p for p in one.images if p not in left_out] for kind, one in listings.items()}
    checked = {path: fault(path) for paths in found.values() for path in paths}
    skipped = [f"{path}: {why}" for path, (why, _) in checked.items() if why]
    if skipped and not reading.skip_bad_images:
        raise UserError("\n".join(skipped) + "\nRepair or remove these images, or leave them out: --skip-bad-images")
    good = {kind: [path for path in paths if not checked[path][0]] for kind, paths in found.items()}
    if not all(good.values()):
        raise UserError("no readable image is left:\n" + "\n".join(skipped))
    notes = [f"{kind}: {note}" for kind, one in listings.items() for note in one.notes]
    notes += _ignored({path: what for path, (_, what) in checked.items()}) + copies(good)
    prompts = {"unlabeled": reading.prompt, "sensitive": reading.sensitive_prompt}
    samples = {kind: _samples(kind, listings[kind], good[kind], prompts[kind], reading, notes) for kind in good}
    bare = [s.path.name for s in samples["unlabeled"] if s.caption is None]
    if bare:
        names = ", ".join(bare[:3]) + (", …" if len(bare) > 3 else "")
        raise UserError(
            f"{unlabeled}: {len(bare)} of {counted(len(good['unlabeled']), 'image')} have no caption ({names}). "
            "Give one for all with --prompt, or a .txt beside each."
        )
    trained, held_out = _hold_out(samples["sensitive"], sensitive, seed) if sensitive else ([], [])
    if syntax := describe_syntax(s.caption for kind in samples.values() for s in kind if s.caption):
        notes.append(syntax)
    skipped += [f"{path}: --exclude names it" for path in sorted(left_out)]
    return Folders(samples["unlabeled"], trained, held_out, skipped, notes)


def _list(unlabeled: Path, sensitive: Path | None, reading: Reading) -> dict[str, Listing]:
    """List both folders. One that lies inside the other does not belong to it."""
    places = {"unlabeled": unlabeled, **({"sensitive": sensitive} if sensitive else {})}
    whose = {place: f"the folder of {kind} images" for kind, place in places.items()}
    apart = {**reading.apart, **whose}
    return {kind: list_folder(place, is_recursive=reading.is_recursive, apart=apart) for kind, place in places.items()}


def _samples(
    kind: str, listing: Listing, images: Sequence[Path], prompt: str | None, reading: Reading, notes: list[str]
) -> list[Sample]:
    """Return the images with captions and repeats. Args: notes: gets what was cleaned of captions."""
    cleaned: list[str] = []
    samples = []
    for path in images:
        file = listing.captions.of(path)
        text, what = read_caption(file) if file else (None, [])
        cleaned += what
        caption = text or prompt
        if caption is not None:
            caption = with_affixes(caption, reading.caption_prefix, reading.caption_suffix)
        samples.append(Sample(path, caption, listing.repeats(path) if reading.has_repeats else 1))
    if said := describe_cleaning(cleaned):
        notes.append(f"{kind}: {said}")
    return samples


def _ignored(ignored: Mapping[Path, Sequence[str]]) -> list[str]:
    """Return a sentence for each part of image files that was not understood, and went unused."""
    counts = Counter(what for parts in ignored.values() for what in parts)
    first = {what: next(p.name for p, parts in ignored.items() if what in parts) for what in counts}
    return [
        f"{n} {'image has' if n == 1 else 'images have'} damaged metadata, read without {what} ({first[what]}"
        f"{', …' if n > 1 else ''})"
        for what, n in counts.items()
    ]


def _excluded(file: Path, images: list[Path]) -> set[Path]:
    """Return the images that a text file names, by path or name. Raises: UserError for an unknown name."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--exclude: cannot read {file}: {error}") from None
    named: dict[str, list[Path]] = {}
    for path in images:
        named.setdefault(path.name, []).append(path)
    found = set()
    for line in lines:
        alike = named.get(Path(line).name, [])
        chosen = [path for path in alike if _ends_with(path, Path(line))] or (alike if len(alike) == 1 else [])
        if not chosen:
            several = f"; there are {len(alike)} of that name: give the path" if alike else ""
            raise UserError(f"--exclude: {file} names {line}, which is not among the unlabeled images{several}")
        found |= set(chosen)
    if len(found) == len(images):
        raise UserError(f"--exclude: {file} names every unlabeled image")
    return found


def _ends_with(path: Path, end: Path) -> bool:
    """Whether a path is the one that end tells, or ends like it."""
    return path.parts[-len(end.parts) :] == end.parts or path.absolute() == end.absolute()


def _hold_out(samples: list[Sample], folder: Path, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split off a tenth, at least two. Raises: UserError if nothing would be left to train on."""
    n = max(MIN_HELD_OUT, round(HELD_OUT_SHARE * len(samples)))
    if len(samples) <= n:
        raise UserError(
            f"{folder}: {counted(len(samples), 'sensitive image')}; at least {MIN_HELD_OUT + 1} are needed, "
            f"as {MIN_HELD_OUT} are held out to see whether unlearning carries over."
        )
    order = rng(seed, SPLIT).permutation(len(samples))
    kept, out = sorted(order[n:]), sorted(order[:n])
    return [samples[i] for i in kept], [samples[i] for i in out]
