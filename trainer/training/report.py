"""report.html and loss.png: what was trained, what came of it, how to use it. Self-contained, all text escaped."""

from pathlib import Path
from typing import Any

from ..config.train_config import TrainConfig, to_toml
from ..metrics.digit_judge import Rate
from ..reporting import html
from ..reporting.plots import draw_loss_curves
from ..reporting.run_dir import RunDir
from .before_after import Evaluation
from .trained_model import TrainedModel


def memorising(growth: dict[str, float]) -> bool:
    """Whether the loss grows on the sensitive images trained on, but hardly on those held out.

    Args: growth: factors by which the loss has grown, see TrainingLoop.loss_growth.
    """
    if len(growth) < 2:
        return False
    trained, held_out = growth["trained"] - 1, growth["held_out"] - 1
    return trained > 0.1 and held_out < trained / 2


def numbers(evaluation: Evaluation) -> dict[str, Any]:
    """The rates as plain values, for the `done` event."""
    found = {}
    for kind in ("before", "after", "ceiling"):
        rate = getattr(evaluation, kind)
        if rate:
            found[f"rate_{kind}"] = round(rate.share, 4)
    return found


def summary(evaluation: Evaluation, result: Path, run_dir: RunDir) -> list[str]:
    """The last lines on the screen."""
    lines = []
    if evaluation.after:
        lines += [f"non-sensitive rate {kind}: {_rate(getattr(evaluation, kind))}" for kind in ("before", "after")]
        lines.append(f"real normal digits, by the same classifier: {evaluation.ceiling.share:.3f}")
    lines += [f"{'LoRA' if result == run_dir.lora else 'model'}: {result}", f"report: {run_dir.report}"]
    return lines


def write(trained: TrainedModel, evaluation: Evaluation, result: Path, run_dir: RunDir) -> None:
    """Write loss.png and report.html into the run folder. Args: result: the LoRA, or the whole model."""
    config = trained.job.config
    curves = run_dir.root / "loss.png"
    draw_loss_curves([e for e in run_dir.events() if e["event"] == "step"], curves)
    parts = [
        html.says(_what(config, trained)),
        *_pictures(evaluation),
        *_rates(evaluation),
        *_curves(trained, curves),
        html.heading("Use it"),
        html.table((), _usage(config, evaluation, result)),
        html.says(ADVICE[config.network]),
        html.heading("Settings"),
        html.code(to_toml(config)),
    ]
    html.save(run_dir.report, run_dir.name, parts)


def _what(config: TrainConfig, trained: TrainedModel) -> str:
    folders = trained.job.folders
    kinds = f"{len(folders.unlabeled)} unlabeled images"
    if folders.sensitive:
        kinds += f" and {len(folders.sensitive)} sensitive ones ({len(folders.held_out)} more held out)"
    learned = f"A LoRA of rank {config.rank}" if config.network == "lora" else "The whole U-Net"
    return (
        f"{learned}, trained for {config.steps} steps with the objective {config.objective} "
        f"on {kinds}, on the model {Path(config.base).name}."
    )


def _pictures(evaluation: Evaluation) -> list[str]:
    if not evaluation.after_grid:
        return []
    grids = (html.picture(evaluation.before_grid, "before"), html.picture(evaluation.after_grid, "after"))
    return [html.heading("Before and after"), html.says(f"“{evaluation.prompt}”, the same seeds."), html.pair(grids)]


def _rates(evaluation: Evaluation) -> list[str]:
    if not evaluation.after:
        return []
    kinds = {"before": evaluation.before, "after": evaluation.after}
    ceiling = evaluation.ceiling
    parts = [
        html.heading("Non-sensitive rate"),
        html.says("The share of pictures that the classifier calls normal, with Wilson's 95 % interval."),
        html.table((), [(kind, _rate(rate)) for kind, rate in kinds.items()]),
        html.says(
            f"The same classifier calls {ceiling.share:.1%} of {ceiling.n} real normal images normal: no rate means "
            "more than that."
        ),
        html.table(
            ("pictures of", *evaluation.after.per_class),
            [(kind, *rate.per_class.values()) for kind, rate in kinds.items()],
        ),
    ]
    distances = [f"{rate.frechet:.1f} {kind}" for kind, rate in kinds.items() if rate.frechet is not None]
    if distances:
        parts.append(html.says(f"Fréchet distance to real normal images: {', '.join(distances)} (lower is better)."))
    return parts


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.share:.3f} ({low:.3f} to {high:.3f}, {rate.n} pictures)"


def _curves(trained: TrainedModel, path: Path) -> list[str]:
    parts = [html.heading("Training"), html.picture(path)]
    if trained.loss_growth:
        shown = ", ".join(f"{kind.replace('_', ' ')} × {value:.2f}" for kind, value in trained.loss_growth.items())
        parts.append(html.says(f"Loss on sensitive images since the start: {shown}."))
    if memorising(trained.loss_growth):
        parts.append(html.says(memorising_text(trained.loss_growth), is_warning=True))
    return parts


def memorising_text(growth: dict[str, float]) -> str:
    return (
        f"The loss on the sensitive images trained on grew × {growth['trained']:.2f}, on those held out only "
        f"× {growth['held_out']:.2f}: these very images are unlearned more than what they have in common. "
        "More sensitive images or fewer steps help."
    )


ADVICE = {
    "lora": "It works with the model it was trained on. Whoever can take the LoRA off can undo it.",
    "full": "A model of its own: nothing has to be loaded with it, and nothing can be taken off.",
}


def _usage(config: TrainConfig, evaluation: Evaluation, result: Path) -> list[tuple[str, str]]:
    prompt = f'--prompt "{evaluation.prompt}"'
    if config.network == "full":
        return [
            ("ComfyUI, A1111, Forge", f"copy {result.name} to the checkpoints; a folder is for diffusers"),
            ("here", f"python -m trainer sample --base {result} {prompt}"),
            ("does it work?", f"python -m trainer evaluate --base {config.base} --unlearned {result} {prompt}"),
        ]
    call = f"--base {config.base} --lora {result} {prompt}"
    return [
        ("ComfyUI", f"copy {result.name} into models/loras, add a Load LoRA node"),
        ("A1111, Forge", f"copy it into models/Lora, write <lora:{result.stem}:1> into the prompt"),
        ("diffusers", f"pipe.load_lora_weights(FOLDER, weight_name='{result.name}')"),
        ("here", f"python -m trainer sample {call}"),
        ("does it work?", f"python -m trainer evaluate {call}"),
    ]
