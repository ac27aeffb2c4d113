"""The pictures that an evaluation needs, by what they are for: all are made, as files, before they are classified."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..common.interrupts import Progress
from ..models.base_model import Base
from .attack_settings import AttackSettings
from .options import Options

FEW = 100  # pictures for each strength, paraphrase and attack, at most
NAMED = 32  # of each prompt that names what is sensitive: enough to tell "still produced" from "gone"
RETAINED = 16  # of each retained prompt: drift is an average over pixels, it needs few


@dataclass
class PictureSets:
    """Pictures by what they are for. Each value: files of the same seeds, in their order."""

    before: list[Path] = field(default_factory=list)
    after: list[Path] = field(default_factory=list)
    retained: dict[str, tuple[list[Path], list[Path]]] = field(default_factory=dict)  # prompt -> before, after
    paraphrases: dict[str, tuple[list[Path], list[Path]]] = field(default_factory=dict)
    named: dict[str, tuple[list[Path], list[Path]]] = field(default_factory=dict)
    strengths: dict[float, list[Path]] = field(default_factory=dict)
    retained_at: dict[float, list[Path]] = field(default_factory=dict)  # strength -> of all retained prompts
    relearned: dict[str, list[tuple[int, list[Path]]]] = field(default_factory=dict)  # model -> (steps, pictures)
    inverted: dict[str, list[Path]] = field(default_factory=dict)


def make_pictures(options: Options, base: Base, unlearned: Base | None, progress: Progress) -> PictureSets:
    """Make the pictures that do not exist yet. Raises: UserError if the LoRA does not fit; Stopped."""
    from ..generation.generate import settings_of
    from ..generation.generator import ImageGenerator

    settings = settings_of(options)
    seeds = list(range(options.first_seed, options.first_seed + options.n))
    few, named, fewest = seeds[:FEW], seeds[:NAMED], seeds[:RETAINED]
    folder = options.out / "pictures"
    sets = PictureSets()
    generator = ImageGenerator(base, options.lora, settings, options.device, options.precision)

    def make(name: str, prompt: str, wanted: Sequence[int], strength: float) -> list[Path]:
        return generator.make(folder / name, prompt, wanted, strength=strength, progress=progress)

    sets.before = make("before", options.prompt, seeds, 0)
    kept = {p: make(f"retain-{i}-before", p, fewest, 0) for i, p in enumerate(options.retain_prompts)}
    other = {p: make(f"paraphrase-{i}-before", p, few, 0) for i, p in enumerate(options.paraphrases)}
    names = {p: make(f"named-{i}-before", p, named, 0) for i, p in enumerate(options.name_prompts)}
    if unlearned:
        generator.close()
        generator = ImageGenerator(unlearned, None, settings, options.device, options.precision)
    strength = options.strength
    sets.after = make("after", options.prompt, seeds, strength)
    sets.retained = {
        p: (kept[p], make(f"retain-{i}-after", p, fewest, strength)) for i, p in enumerate(options.retain_prompts)
    }
    sets.paraphrases = {
        p: (other[p], make(f"paraphrase-{i}-after", p, few, strength)) for i, p in enumerate(options.paraphrases)
    }
    sets.named = {
        p: (names[p], make(f"named-{i}-after", p, named, strength)) for i, p in enumerate(options.name_prompts)
    }
    if options.invert or options.relearn:
        assert options.sensitive is not None, "read_options asks for --sensitive"
        attack = AttackSettings(options.sensitive, options.prompt, few, options.attack(), options.invert)
    for s in options.strengths:
        sets.strengths[s] = make(f"strength-{s:g}", options.prompt, few, s)
        sets.retained_at[s] = [
            path for i, p in enumerate(options.retain_prompts) for path in make(f"retain-{i}-{s:g}", p, fewest, s)
        ]
    if options.invert:
        from . import textual_inversion

        for kind, s in (("with the LoRA", strength), ("base model", 0.0)):
            sets.inverted[kind] = textual_inversion.invert(
                generator, attack, options.out / "invert" / kind, strength=s, progress=progress
            )
    generator.close()
    if options.relearn:
        from . import relearning

        for kind, start in (("with the LoRA", options.lora), ("base model", None)):
            sets.relearned[kind] = relearning.relearn(base, start, attack, options.out / "relearn" / kind, progress)
    return sets
