"""report.html and loss.png: what was trained, what came of it, how to use it. Self-contained, all text escaped."""

import base64
import html
import math
from pathlib import Path
from typing import Any

from .config import TrainConfig, to_toml
from .evaluate import Evaluation, Rate
from .files import replacing, write_text
from .run_dir import RunDir
from .train import Trained

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c2330}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d9dee7}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:1.5rem}.pair img{width:100%;image-rendering:pixelated}
figure{margin:0}figcaption{color:#566}img{max-width:100%}
table{border-collapse:collapse}td,th{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top}
.big{font-size:1.25rem}pre{background:#f3f5f9;padding:.8rem;overflow:auto;border-radius:.3rem}
.warn{background:#fff4dd;padding:.6rem .9rem;border-radius:.3rem}
"""


def memorising(rises: dict[str, float]) -> bool:
    """Whether the loss grows on the sensitive images trained on, but hardly on those held out.

    Args: rises: factors by which the loss has grown, see Loop.rises.
    """
    if len(rises) < 2:
        return False
    trained, held_out = rises["trained"] - 1, rises["held_out"] - 1
    return trained > 0.1 and held_out < trained / 2


def numbers(evaluation: Evaluation) -> dict[str, Any]:
    """The rates as plain values, for the `done` event."""
    found = {}
    for kind in ("before", "after", "ceiling"):
        rate = getattr(evaluation, kind)
        if rate:
            found[f"rate_{kind}"] = round(rate.share, 4)
    return found


def summary(evaluation: Evaluation, run_dir: RunDir) -> list[str]:
    """The last lines on the screen."""
    lines = []
    if evaluation.after:
        lines += [f"non-sensitive rate {kind}: {_rate(getattr(evaluation, kind))}" for kind in ("before", "after")]
        lines.append(f"real normal digits, by the same classifier: {evaluation.ceiling.share:.3f}")
    lines += [f"LoRA: {run_dir.lora}", f"report: {run_dir.report}"]
    return lines


def write(config: TrainConfig, trained: Trained, evaluation: Evaluation, run_dir: RunDir) -> None:
    """Write loss.png and report.html into the run folder."""
    curves = run_dir.root / "loss.png"
    _draw_curves([e for e in run_dir.events() if e["event"] == "step"], curves)
    parts = [
        _title(config, trained, run_dir),
        _pictures(evaluation),
        _rates(evaluation),
        _curves(trained, curves),
        _usage(config, evaluation, run_dir),
        f"<h2>Settings</h2><pre>{html.escape(to_toml(config))}</pre>",
    ]
    head = f"<meta charset=utf-8><title>{html.escape(run_dir.name)}</title><style>{STYLE}</style>"
    body = "".join(parts)
    write_text(run_dir.report, f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n")


def _title(config: TrainConfig, trained: Trained, run_dir: RunDir) -> str:
    folders = trained.folders
    kinds = f"{len(folders.unlabeled)} unlabeled images"
    if folders.sensitive:
        kinds += f" and {len(folders.sensitive)} sensitive ones ({len(folders.held_out)} more held out)"
    return (
        f"<h1>{html.escape(run_dir.name)}</h1><p>A LoRA of rank {config.rank}, trained for {config.steps} steps with "
        f"the objective <b>{config.objective}</b> on {kinds}, on the model "
        f"<b>{html.escape(Path(config.base).name)}</b>.</p>"
    )


def _pictures(evaluation: Evaluation) -> str:
    if not evaluation.after_grid:
        return ""
    figures = "".join(
        f"<figure><img src='{_inline(path)}' alt='{kind}'><figcaption>{kind}</figcaption></figure>"
        for kind, path in (("before", evaluation.before_grid), ("after", evaluation.after_grid))
    )
    prompt = html.escape(evaluation.prompt)
    return f"<h2>Before and after</h2><p>“{prompt}”, the same seeds.</p><div class=pair>{figures}</div>"


def _rates(evaluation: Evaluation) -> str:
    if not evaluation.after:
        return ""
    kinds = (("before", evaluation.before), ("after", evaluation.after))
    rows = "".join(f"<tr><td>{kind}<td>{_rate(rate)}" for kind, rate in kinds)
    distances = [f"{rate.frechet:.1f} {kind}" for kind, rate in kinds if rate.frechet is not None]
    head = "".join(f"<th>{html.escape(name)}" for name in evaluation.after.per_class)
    classes = "".join(f"<tr><td>{kind}" + "".join(f"<td>{n}" for n in rate.per_class.values()) for kind, rate in kinds)
    return (
        "<h2>Non-sensitive rate</h2><p>The share of pictures that the classifier calls normal, with Wilson's 95 % "
        f"interval.</p><table class=big>{rows}</table>"
        f"<p>The same classifier calls {evaluation.ceiling.share:.1%} of {evaluation.ceiling.n} real normal images "
        f"normal: no rate means more than that.</p><table><tr><th>pictures of{head}{classes}</table>"
        + (
            f"<p>Fréchet distance to real normal images: {', '.join(distances)} (lower is better).</p>"
            if distances
            else ""
        )
    )


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.share:.3f} ({low:.3f} to {high:.3f}, {rate.n} pictures)"


def _curves(trained: Trained, path: Path) -> str:
    text = ""
    if trained.rises:
        shown = ", ".join(f"{kind.replace('_', ' ')} × {value:.2f}" for kind, value in trained.rises.items())
        text = f"<p>Loss on sensitive images since the start: {shown}.</p>"
    if memorising(trained.rises):
        text += f"<p class=warn>{memorising_text(trained.rises)}</p>"
    return f"<h2>Training</h2><img src='{_inline(path)}' alt='loss curves'>{text}"


def memorising_text(rises: dict[str, float]) -> str:
    return (
        f"The loss on the sensitive images trained on grew × {rises['trained']:.2f}, on those held out only "
        f"× {rises['held_out']:.2f}: these very images are unlearned more than what they have in common. "
        "More sensitive images or fewer steps help."
    )


def _usage(config: TrainConfig, evaluation: Evaluation, run_dir: RunDir) -> str:
    name = html.escape(run_dir.name)
    prompt = html.escape(evaluation.prompt)
    return (
        "<h2>Use it</h2><table>"
        f"<tr><td>ComfyUI<td>copy <code>{name}.safetensors</code> into <code>models/loras</code>, add a Load LoRA node"
        f"<tr><td>A1111, Forge<td>copy it into <code>models/Lora</code>, write <code>&lt;lora:{name}:1&gt;</code> "
        "into the prompt"
        f"<tr><td>diffusers<td><code>pipe.load_lora_weights(FOLDER, weight_name='{name}.safetensors')</code>"
        f"<tr><td>here<td><code>python -m trainer sample --base {html.escape(config.base)} --lora "
        f'{html.escape(str(run_dir.lora))} --prompt "{prompt}"</code></table>'
        "<p>It works with the model it was trained on. Whoever can take the LoRA off can undo it.</p>"
    )


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _draw_curves(steps: list[dict[str, Any]], path: Path) -> None:
    """Losses by kind, and the sensitive loss over the unlabeled one: apart is good."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [e["step"] for e in steps]
    smooth = lambda key: _running_mean([math.nan if e[key] is None else e[key] for e in steps])  # noqa: E731
    left.plot(x, smooth("risk_unlabeled"), label="unlabeled loss")
    left.plot(x, smooth("risk_sensitive"), label="sensitive risk")
    left.plot(x, smooth("normal_risk"), label="normal risk R")
    left.set_xlabel("step")
    left.legend()
    right.plot(x, smooth("ratio"), color="tab:red")
    right.axhline(1, color="grey", linewidth=0.8)
    right.set_xlabel("step")
    right.set_title("sensitive / unlabeled loss", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _running_mean(values: list[float], keep: float = 0.95) -> list[float]:
    """Exponential mean, corrected at the start, so that curves show more than noise."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out
