"""The two image folders of a run, and the `data` command that describes them."""

from ..common import errors
from ..common.distributed import Ranks
from ..common.events import EventWriter
from ..config.arguments import Invocation
from ..config.train_config import TrainConfig, folders_of
from . import contact_sheet
from .folders import Folders, scan

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
    """Read the images of both folders. Raises: UserError, see folders.scan."""
    found = folders_of(config)
    if found["unlabeled"] is None:  # the command data, with neither a model nor folders named
        raise errors.UserError("--unlabeled and --sensitive: name the two folders of images")
    return scan(
        found["unlabeled"],
        found["sensitive"],
        prompt=config.prompt,
        sensitive_prompt=config.sensitive_prompt,
        skip_bad_images=config.skip_bad_images,
        seed=config.seed,
        exclude=config.exclude,
    )


def describe(config: TrainConfig, folders: Folders) -> list[str]:
    """Describe what the two folders hold, in lines for the screen."""
    found = folders_of(config)
    lines = [f"unlabeled: {len(folders.unlabeled)} images in {found['unlabeled']}"]
    if folders.sensitive:
        held_out = f"{len(folders.held_out)} more held out"
        lines.append(f"sensitive: {len(folders.sensitive)} images in {found['sensitive']}, {held_out}")
    captions = list(dict.fromkeys(s.caption for s in folders.unlabeled))
    more = f"; … ({len(captions)} in all)" if len(captions) > 3 else ""
    return [*lines, "captions: " + "; ".join(captions[:3]) + more]


def may_spill_over(config: TrainConfig, folders: Folders) -> bool:
    """Whether prompts are unlearned while no image shows what neighbouring prompts must keep."""
    has_own = config.sensitive_prompt_share > 0 and any(s.caption for s in folders.sensitive)
    has_own = has_own and config.objective != "unsupervised"  # which draws no sensitive image
    return has_own and not config.keep_prompts and len({s.caption for s in folders.unlabeled}) == 1


def run(invocation: Invocation) -> int:
    """Run the `data` command: describe the two folders, with --sheet as a picture too. Returns: an exit code."""
    config, folders = invocation.config, find(invocation.config)
    lines = [*describe(config, folders), *(f"skipped {line}" for line in folders.skipped)]
    if invocation.sheet:
        contact_sheet.save(folders, invocation.sheet)
    counts = {name: len(getattr(folders, name)) for name in ("unlabeled", "sensitive", "held_out", "skipped")}
    EventWriter(is_on=invocation.events).answer(lines, "data", **counts)
    return errors.DONE
