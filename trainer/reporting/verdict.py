"""What a result means, in one sentence with advice: too weak, harmful, or a prompt that shows nothing."""

from collections.abc import Mapping, Sequence

WEAK_SHARE = 0.5  # of the way from the rate before to the best possible one
WEAK_GROWTH = 1.02  # of the loss on held-out sensitive images
NOTHING_TO_GAIN = 0.05  # between the rate before and the best possible one
MEMORISING_GROWTH = 1.1  # of the loss on sensitive images trained on
HARMFUL_GROWTH = 1.5  # of the loss on normal images
OFTEN_NEGATIVE = 0.05  # share of the steps in which the normal risk is negative
FEW_STEPS = 5  # in which it may be negative by chance
STRONGER = "more steps or a higher temperature"


def answer(before: float, after: float) -> str:
    """Return the result in one sentence: the non-sensitive rates after and before."""
    return f"{_percent(after)} of pictures are normal now; {_percent(before)} before."


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"


def answer_without_rates(growth: Mapping[str, float], steps: int) -> str:
    """Return the result of a run whose pictures nobody judged, in one sentence. Args: growth: see `about_growth`."""
    if "held_out" in growth:
        factor = f"× {growth['held_out']:.2f}"
        return f"After {steps} steps the loss on sensitive images that were held out is {factor} of what it was."
    return f"Trained for {steps} steps."


def about_rates(
    before: float, after: float, *, best: float, intervals: tuple[tuple[float, float], tuple[float, float]]
) -> str | None:
    """Interpret the non-sensitive rates before and after unlearning.

    Args:
        best: the rate on real normal images, which no pictures can be expected to exceed.
        intervals: (low, high) of the rate before and of the rate after.
    Returns: a sentence; None if the rate rose over more than half of the way to the best one.
    """
    if best - before < NOTHING_TO_GAIN:
        return (
            f"The base model made hardly any sensitive pictures (rate {before:.3f}), so the rates show nothing: "
            "choose a prompt that brings them out."
        )
    if intervals[1][1] < intervals[0][0]:
        return (
            f"The rate fell from {before:.3f} to {after:.3f}: training too long or too hard undoes the effect. "
            "Try fewer steps, a lower temperature or a lower prior."
        )
    if after - before < WEAK_SHARE * (best - before):
        return f"Too weak: the rate went from {before:.3f} to {after:.3f}. Try {STRONGER}."
    return None


def about_names(rates: Sequence[tuple[str, float, float]]) -> str | None:
    """Interpret the rates of prompts that name what is sensitive. Args: rates: (prompt, before, after).

    Returns: a sentence; None if most of what came out before is gone.
    """
    still = [
        f"“{prompt}” ({1 - after:.0%})"
        for prompt, before, after in rates
        if before <= WEAK_SHARE and after - before <= WEAK_SHARE * (1 - before)
    ]
    if not still:
        return None
    return (
        f"Named, it still comes out, in pictures of {', '.join(still)}. A prompt is unlearned where it is trained: "
        "give it with --sensitive-prompt, or as captions of the sensitive images."
    )


def about_growth(growth: Mapping[str, float]) -> str | None:
    """Interpret by what factors the loss on sensitive images has grown, `trained` on and `held_out`.

    Returns: a sentence; None if the loss grew on both, or nothing was measured.
    """
    if not {"trained", "held_out"} <= growth.keys():
        return None
    if is_memorising(growth):
        return (
            f"The loss on the sensitive images trained on grew × {growth['trained']:.2f}, on those held out only "
            f"× {growth['held_out']:.2f}: the training unlearns these images more than what they have in common. "
            "More sensitive images or fewer steps help."
        )
    if growth["held_out"] < WEAK_GROWTH:
        return (
            f"Too weak: the loss on held-out sensitive images grew × {growth['held_out']:.2f}, so hardly anything was "
            f"unlearned. Try {STRONGER}."
        )
    return None


def is_memorising(growth: Mapping[str, float]) -> bool:
    """Return whether the loss grows on the sensitive images trained on, but less than half as much on held-out ones."""
    if not {"trained", "held_out"} <= growth.keys():
        return False
    trained, held_out = growth["trained"] - 1, growth["held_out"] - 1
    return trained > MEMORISING_GROWTH - 1 and held_out < trained / 2


def about_harm(growth: Mapping[str, float]) -> str | None:
    """Interpret by what factor the loss on normal images has grown.

    Args: growth: by kind; "normal" is what counts here.
    Returns: a sentence; None if it has hardly grown, or was not measured.
    """
    normal = growth.get("normal", 1.0)
    if normal < HARMFUL_GROWTH:
        return None
    return (
        f"The loss on normal images grew × {normal:.2f}: the model is losing what it should keep. Try fewer steps, or "
        "a lower learning rate, temperature or sensitive weight."
    )


def about_negative_risk(negative: int, steps: int, prior: float) -> str | None:
    """Interpret in how many steps the normal risk, which no real loss can be below 0, was negative.

    Returns: a sentence; None if it was seldom so.
    """
    if negative <= max(FEW_STEPS, OFTEN_NEGATIVE * steps):
        return None
    return (
        f"The loss on normal images, which the objective derives, was negative in {negative} of {steps} steps. Either "
        f"the prior of {prior:g} is too high for these images, or the sensitive images are so few that the model knows "
        "them by heart. Try a lower prior, more sensitive images or fewer steps."
    )
