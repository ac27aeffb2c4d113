"""The two image folders of a run, and the `data` command that describes them."""

from collections import Counter
from pathlib import Path

from ..common import errors
from ..common.distributed import Ranks
from ..common.errors import UserError
from ..common.events import EventWriter
from ..common.wording import counted
from ..config.arguments import Invocation
from ..config.train_config import TrainConfig, folders_of
from . import contact_sheet
from .folders import Folders, Reading, Sample, scan

FEW_SENSITIVE = 3  # images trained on; on the digits, three were learned by heart: docs/training.md
SPILL_OVER = (
    "sensitive prompts of their own are unlearned, and prompts near them may change along. "
    'Name those that must stay: --keep-prompts "… | …"'
)


def with_digits(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """Write the built-in digits as ordinary folders. Returns: the settings with these folders named."""
    from ..builtin import digits

    if ranks.is_first:
        digits.write_folders(config.output_dir / "digits")
    ranks.wait()
    folders = digits.write_folders(config.output_dir / "digits")
    return config.model_copy(update={k: folders[k] for k in ("unlabeled", "sensitive")})


def find(config: TrainConfig) -> Folders:
    """Read the images of both folders. Raises: UserError if they are not named or overlap, and see folders.scan."""
    unlabeled, sensitive = folders_of(config).values()
    if unlabeled is None:
        raise UserError("--unlabeled and --sensitive: name the two folders of images, or --data, which holds both")
    if sensitive:
        refuse_overlap(unlabeled, sensitive)
    reading = Reading(
        prompt=config.prompt,
        sensitive_prompt=config.sensitive_prompt,
        skip_bad_images=config.skip_bad_images,
        exclude=config.exclude,
        is_recursive=config.recursive,
        has_repeats=config.folder_repeats,
        caption_prefix=config.caption_prefix,
        caption_suffix=config.caption_suffix,
        apart={config.output_dir: "the output folder"},
    )
    return scan(unlabeled, sensitive, reading, seed=config.seed)


def refuse_overlap(unlabeled: Path, sensitive: Path) -> None:
    """Raises: UserError if the two folders are the same, also by way of links. One may lie in the other: see scan."""
    if unlabeled.resolve() == sensitive.resolve():
        raise UserError(
            f"--unlabeled and --sensitive: {unlabeled} and {sensitive} are the same folder, so nothing tells sensitive "
            "images from unlabeled ones. Name two folders."
        )


def warnings(config: TrainConfig, folders: Folders) -> list[str]:
    """Return a sentence for each thing about the folders that may spoil the training."""
    found = []
    if 0 < len(folders.sensitive) <= FEW_SENSITIVE and config.objective != "unsupervised":
        n, held_out = len(folders.sensitive), len(folders.held_out)
        images = "1 sensitive image is" if n == 1 else f"{n} sensitive images are"
        found.append(
            f"only {images} trained on, as {held_out} are held out: the LoRA may unlearn these very images, not what "
            "they have in common. 20 or more are better"
        )
    return [*found, SPILL_OVER] if may_spill_over(config, folders) else found


def describe(config: TrainConfig, folders: Folders) -> list[str]:
    """Describe what the two folders hold, in lines for the screen."""
    found = folders_of(config)
    lines = [f"unlabeled: {counted(len(folders.unlabeled), 'image')} in {found['unlabeled']}"]
    if folders.sensitive:
        held_out = f"{len(folders.held_out)} more held out"
        lines.append(f"sensitive: {counted(len(folders.sensitive), 'image')} in {found['sensitive']}, {held_out}")
    lines += [line for kind in ("unlabeled", "sensitive") if (line := _repeated(kind, getattr(folders, kind)))]
    captions = list(dict.fromkeys(s.caption or "" for s in folders.unlabeled))
    more = f"; … ({len(captions)} in all)" if len(captions) > 3 else ""
    return [*lines, "captions: " + "; ".join(captions[:3]) + more]


def _repeated(kind: str, samples: list[Sample]) -> str | None:
    """Return a sentence about images in kohya's folders `10_name`; None where there are none."""
    counts = Counter(sample.repeats for sample in samples)
    if set(counts) <= {1}:
        return None
    many = {n: counted(count, "image") for n, count in sorted(counts.items(), reverse=True)}
    often = ", ".join(f"{images} {'once' if n == 1 else f'{n} times'}" for n, images in many.items())
    return f"{kind}: shown as often as the names of sub-folders say: {often} (--no-folder-repeats: all the same)"


def may_spill_over(config: TrainConfig, folders: Folders) -> bool:
    """Return whether prompts are unlearned while no image shows what neighbouring prompts must keep."""
    has_own = config.sensitive_prompt_share > 0 and any(s.caption for s in folders.sensitive)
    has_own = has_own and config.objective != "unsupervised"  # which draws no sensitive image
    return has_own and not config.keep_prompts and len({s.caption for s in folders.unlabeled}) == 1


def run(invocation: Invocation) -> int:
    """Run the `data` command: describe the two folders, with --sheet as a picture too. Returns: an exit code."""
    config, folders = invocation.config, find(invocation.config)
    said = [*warnings(config, folders), *folders.notes, *(f"skipped {line}" for line in folders.skipped)]
    lines = [*describe(config, folders), *said]
    if invocation.sheet:
        contact_sheet.save(folders, invocation.sheet)
    counts = {name: len(getattr(folders, name)) for name in ("unlabeled", "sensitive", "held_out", "skipped")}
    EventWriter(is_on=invocation.events).answer(lines, "data", **counts)
    return errors.DONE
