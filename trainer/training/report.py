"""The report of a training: report.html and loss.png, and the last lines on the screen."""

from pathlib import Path
from typing import Any

from PIL.Image import Image, fromarray

from ..builtin import digits
from ..common.wording import counted
from ..config.train_config import TrainConfig, to_toml
from ..data.contact_sheet import tiles
from ..metrics.digit_judge import Rate
from ..reporting import curves, html, sidecars, verdict
from ..reporting.plots import draw_loss_curves
from ..reporting.run_dir import RunDir
from .before_after import Evaluation, NamedPrompt
from .learner import TrainedModel
from .saving import public_settings


def warnings(trained: TrainedModel, evaluation: Evaluation) -> list[str]:
    """Interpret the result. Returns: a sentence for each doubt about it; empty if it looks good."""
    config, growth = trained.job.config, trained.loss_growth
    if config.objective == "unsupervised":  # the baseline that does not unlearn
        return []
    before, after, ceiling = evaluation.before, evaluation.after, evaluation.ceiling
    found = [verdict.about_harm(growth)]
    if config.objective in ("pu", "nnpu"):
        found.append(verdict.about_negative_risk(trained.negative_steps, config.steps, float(config.prior)))
    if before and after and ceiling:
        intervals = before.interval, after.interval
        found.append(verdict.about_rates(before.share, after.share, best=ceiling.share, intervals=intervals))
    show = config.metadata == "full" or config.name_prompts == digits.NAME_PROMPTS
    judged = [
        (named.prompt if show else "…", named.before_rate, named.after_rate)
        for named in evaluation.named
        if named.before_rate is not None and named.after_rate is not None
    ]
    found.append(verdict.about_names(judged))
    if not before or verdict.is_memorising(growth):
        found.append(verdict.about_growth(growth))
    return [text for text in found if text]


def numbers(evaluation: Evaluation) -> dict[str, Any]:
    """Return the rates as plain values, for the `done` event."""
    found = {}
    for kind in ("before", "after", "ceiling"):
        rate = getattr(evaluation, kind)
        if rate:
            found[f"rate_{kind}"] = round(rate.share, 4)
    return found


def summary(evaluation: Evaluation, result: Path, run_dir: RunDir) -> list[str]:
    """Return the last lines on the screen."""
    lines = []
    if evaluation.before and evaluation.after and evaluation.ceiling:
        for kind, rate in (("before", evaluation.before), ("after", evaluation.after)):
            low, high = rate.interval
            interval = f"{low:.3f} to {high:.3f}, {counted(rate.n, 'picture')}"
            lines.append(f"non-sensitive rate {kind}: {rate.share:.3f} ({interval})")
        lines.append(f"real normal digits, by the same classifier: {evaluation.ceiling.share:.3f}")
    lines += [f"{'LoRA' if result == run_dir.lora else 'model'}: {result}", f"report: {run_dir.report}"]
    return lines


def write(trained: TrainedModel, evaluation: Evaluation, result: Path, run_dir: RunDir) -> None:
    """Write loss.png and report.html into the run folder, and what stands beside the result.

    Args: result: the LoRA, or the whole model.
    """
    config, growth = public_settings(trained.job.config), trained.loss_growth
    prompt = evaluation.prompt if config.metadata == "full" else "…"
    if config.sidecars:
        _write_sidecars(trained, evaluation, result, config)
    events = run_dir.events()
    draw_loss_curves([e for e in events if e["event"] == "step"], run_dir.root / "loss.png")
    html.save(
        run_dir.report,
        "training.html",
        title=f"Training report: {run_dir.name}",
        answer=_answer(trained, evaluation),
        settings_toml=to_toml(config),
        facts=_facts(trained, config),
        prompt=prompt,
        pairs=_pairs(evaluation, config.images),
        **_rates(evaluation),
        curves=curves.of_training(events),
        named=[(p.prompt if config.metadata == "full" else "…", _named_pairs(p)) for p in evaluation.named],
        loss_growth=[(GROWN[kind], f"× {value:.2f}") for kind, value in growth.items()],
        warnings=warnings(trained, evaluation),
        usage=_usage(config, prompt, result if config.metadata == "full" else Path(result.name)),
        commands=COMMANDS,
        advice=ADVICE[config.network],
    )


GROWN = {
    "normal": "normal images, estimated",
    "trained": "sensitive images trained on",
    "held_out": "sensitive images held out",
}


def _named_pairs(named: NamedPrompt) -> list[tuple[int, Image, Image]]:
    return [(i, fromarray(b), fromarray(a)) for i, (b, a) in enumerate(zip(named.before, named.after, strict=True))]


def _facts(trained: TrainedModel, config: TrainConfig) -> list[tuple[str, str]]:
    folders = trained.job.folders
    images = f"{len(folders.unlabeled)} unlabeled"
    if folders.sensitive:
        images += f" and {len(folders.sensitive)} sensitive ({len(folders.held_out)} more held out)"
    return [
        ("learned", f"A LoRA of rank {config.rank}" if config.network == "lora" else "The whole U-Net"),
        ("steps", str(config.steps)),
        ("objective", config.objective),
        ("images", images),
        ("prior", f"{config.prior:g}" if isinstance(config.prior, float) else config.prior),
        ("base model", Path(config.base or "a local file").name),
    ]


def _write_sidecars(trained: TrainedModel, evaluation: Evaluation, result: Path, config: TrainConfig) -> None:
    """Write the model card, and beside a file its preview and notes. Args: config: as others may see it."""
    name, answer = result.name if result.is_dir() else result.stem, _answer(trained, evaluation)
    found = _rates(evaluation)
    sidecars.write_card(
        result.with_name(f"{name}.md"),
        base=config.base,
        rates={kind: round(rate.share, 4) for kind, rate in found["rates"].items()},
        name=name,
        answer=answer,
        warnings=warnings(trained, evaluation),
        facts=_facts(trained, config),
        rows=found.get("rate_rows", []),
        usage=[(where, how) for where, how in _usage(config, "…", Path(result.name)) if where not in COMMANDS],
        advice=ADVICE[config.network],
        settings=to_toml(config),
    )
    if result.is_dir():
        return
    sidecars.write_notes(result.with_name(f"{name}.json"), f"Made with PU Unlearn. {answer}")
    if evaluation.after_grid:
        sidecars.write_preview(result.with_name(f"{name}.preview.png"), tiles(evaluation.after_grid, config.images))


def _answer(trained: TrainedModel, evaluation: Evaluation) -> str:
    if evaluation.before and evaluation.after:
        return verdict.answer(evaluation.before.share, evaluation.after.share)
    return verdict.answer_without_rates(trained.loss_growth, trained.job.config.steps)


def _pairs(evaluation: Evaluation, n: int) -> list[tuple[int, Image, Image]]:
    """Return the pictures (seed, before, after); empty where none were made."""
    before, after = evaluation.before_grid, evaluation.after_grid
    if not (before and after):
        return []
    return list(zip(range(n), tiles(before, n), tiles(after, n), strict=True))


def _rates(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the template shows about the non-sensitive rates; empty where nothing was counted."""
    before, after, ceiling = evaluation.before, evaluation.after, evaluation.ceiling
    if not (before and after and ceiling):
        return {"rates": {}}
    rates = {"before": before, "after": after}
    return {
        "rates": rates,
        "ceiling": ceiling,
        "rate_rows": [_row(kind, rate) for kind, rate in {**rates, "real normal images": ceiling}.items()],
        "class_head": ("pictures of", *after.per_class),
        "class_rows": [(kind, *rate.per_class.values()) for kind, rate in rates.items()],
        "distances": [(kind, f"{rate.frechet:.1f}") for kind, rate in rates.items() if rate.frechet is not None],
    }


def _row(kind: str, rate: Rate) -> tuple[str, str, str, int]:
    low, high = rate.interval
    return kind, html.percent(rate.share), f"{html.percent(low)} to {html.percent(high)}", rate.n


ADVICE = {
    "lora": "The LoRA works with the model it was trained on. Whoever can remove the LoRA can undo the unlearning.",
    "full": "The unlearned model is complete: no LoRA has to be loaded with it, and none can be removed.",
}
COMMANDS = ("diffusers", "make pictures", "does it work?")  # rows of the table below that hold code


def _usage(config: TrainConfig, prompt: str, result: Path) -> list[tuple[str, str]]:
    asked, base = f'--prompt "{prompt}"', config.base or "MODEL"
    if config.network == "full":
        return [
            ("ComfyUI, A1111, Forge", f"copy {result.name} into the folder of checkpoints; a folder is for diffusers"),
            ("make pictures", f"python -m trainer sample --base {result} {asked}"),
            (
                "does it work?",
                f"python -m trainer evaluate --base {base} --unlearned {result} {asked}",
            ),
        ]
    call = f"--base {base} --lora {result} {asked}"
    return [
        ("ComfyUI", f"copy {result.name} into models/loras, add a Load LoRA node"),
        ("A1111, Forge", f"copy it into models/Lora, write <lora:{result.stem}:1> into the prompt"),
        ("diffusers", f"pipe.load_lora_weights(FOLDER, weight_name='{result.name}')"),
        ("make pictures", f"python -m trainer sample {call}"),
        ("does it work?", f"python -m trainer evaluate {call}"),
    ]
