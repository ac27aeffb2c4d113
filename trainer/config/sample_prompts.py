"""--sample-prompts: a file with a prompt a line, with kohya's switches after it, for the pictures during training."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class SamplePrompt(BaseModel):
    """One picture; what is None is as in the other pictures of the run."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    prompt: str
    negative: str = ""
    seed: int = Field(0, ge=0, lt=2**64)
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, ge=1, le=30)


SWITCHES = {"n": "negative", "d": "seed", "s": "steps", "l": "guidance"}
REFUSED = dict.fromkeys(("w", "h"), "pictures are as large as --resolution; leave it out")


def read_sample_prompts(path: Path) -> tuple[list[SamplePrompt], list[str]]:
    """Read the file; empty lines and those that begin with # are left out.

    Returns: (the prompts, a sentence for each line that cannot be used).
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [], [f"--sample-prompts: {path} cannot be read ({error})"]
    found, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                found.append(_parsed(line.strip()))
            except ValueError as error:
                problems.append(f"--sample-prompts: {path}, line {number}: {error}")
    return found, problems or ([] if found else [f"--sample-prompts: {path} holds no prompt"])


def _parsed(line: str) -> SamplePrompt:
    """Return a line's prompt. Raises: ValueError naming the switch that is unknown or has a wrong value."""
    prompt, *switches = line.split(" --")
    values: dict[str, Any] = {"prompt": prompt.strip()}
    for text in switches:
        switch, _, value = text.strip().partition(" ")
        if switch not in SWITCHES:
            known = ", ".join(f"--{name}" for name in SWITCHES)
            raise ValueError(f"--{switch}: {REFUSED.get(switch, f'no such switch; {known} are known')}")
        values[SWITCHES[switch]] = value.strip()
    try:
        return SamplePrompt(**values)
    except ValidationError as error:
        fault = error.errors()[0]
        names = {field: switch for switch, field in SWITCHES.items()}
        reason = fault["msg"].replace("Input should", "must")
        raise ValueError(f"--{names[str(fault['loc'][0])]}: {reason}, got {fault['input']!r}") from None
