"""The comparison of docs/results.md on the built-in digits: objectives, temperatures and sizes, three seeds each.

    python -m trainer.experiments.digits run [--seeds 0,1,2] [--only TEXT]    about a minute a run; skips finished runs
    python -m trainer.experiments.digits table                                prints the tables

Every run trains through `training.run` on PNG folders as a user's run does. The rate is over 500 pictures of seeds that
no other run uses (DDIM, 25 steps, no guidance); the Fréchet distance is on the classifier's features to 500 held-out
real even digits; the last figure is the share of the rarest even digit among the pictures of all seeds.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np

from ..builtin import CONFIG, MODEL, digits
from ..common.distributed import ONE
from ..config.arguments import parse
from ..config.train_config import TrainConfig
from ..data.folders import scan
from ..data.job import TrainingJob
from ..generation.generate import PictureSettings, generate_pictures
from ..memory import devices
from ..metrics.digit_judge import DigitJudge
from ..models import base_model, pipeline
from ..reporting.run_context import RunContext
from ..reporting.run_dir import RunDir
from ..training.before_after import maker
from ..training.run import run as train

PICTURES = 500
OWN_PROMPT_GUIDANCE = 3.0  # without, the base model itself follows such a prompt in three of four pictures only
SIZES = ((400, 100), (80, 20))


@dataclass(frozen=True)
class Setting:
    """One row of the table: what differs from the built-in default."""

    name: str
    changes: dict = field(default_factory=dict)
    normal_only: bool = False  # leave the contamination out: the upper reference that real data cannot have
    captioned: bool = False  # sensitive images under their own captions
    sizes: tuple = SIZES
    twin: str = ""  # the setting that this one equals, step by step, as long as R is never negative


PLAIN = {"min_snr_gamma": None}  # all timesteps count the same, as in the paper
FIXED = {"temperature_mode": "fixed", "temperature": 1.0, **PLAIN}
EVEN = [digits.own_prompt(d) for d in range(0, 10, 2)]
KEPT = {
    "": None,
    ", all even prompts kept but that of four": " | ".join(p for p in EVEN if p != digits.own_prompt(4)),
    ", all even prompts kept": " | ".join(EVEN),
}
SETTINGS = (
    Setting("unsupervised", {"objective": "unsupervised", **PLAIN}),
    Setting("unsupervised, normal images only", {"objective": "unsupervised", **PLAIN}, normal_only=True),
    Setting("supervised, fixed 1", {"objective": "supervised", **FIXED}),
    Setting("supervised, per timestep", {"objective": "supervised"}),
    Setting("pu, fixed 1", {"objective": "pu", **FIXED}),
    Setting("pu, per timestep", {}),
    Setting("pu, per timestep, prior estimated (default)", {"prior": "auto"}, sizes=SIZES[:1]),
    Setting("nnpu, fixed 1", {"objective": "nnpu", **FIXED}, twin="pu, fixed 1"),
    Setting("nnpu, per timestep", {"objective": "nnpu"}, twin="pu, per timestep"),
    *(
        Setting(f"pu, per timestep, own captions{what}", {"keep_prompts": kept}, captioned=True, sizes=SIZES[:1])
        for what, kept in KEPT.items()
    ),
)


def run(setting: Setting, size: tuple[int, int], seed: int, root: Path) -> dict:
    """Train and measure once. Returns: the row's figures, also saved as JSON below root."""
    target = _file(setting.name, size, seed, root)
    if target.exists():
        return json.loads(target.read_text(encoding="utf-8"))
    twin = _file(setting.twin, size, seed, root)
    if setting.twin and twin.exists():
        found = json.loads(twin.read_text(encoding="utf-8"))
        if found["sign_flips"] == 0:
            return _keep(target, {**found, "setting": setting.name, "same_as": setting.twin})
    name = target.stem.replace(",", "").replace("(", "").replace(")", "")
    written = digits.write_folders(
        root / f"digits-{size[0]}-{setting.normal_only}", *size, normal_only=setting.normal_only
    )
    sensitive = written["sensitive_captioned" if setting.captioned else "sensitive"]
    default = parse([], CONFIG).config
    changes = {"name": name, "output_dir": root, "seed": seed, "prior": digits.SENSITIVE_SHARE, **setting.changes}
    changes |= {"unlabeled": written["unlabeled"], "sensitive": sensitive}
    config = TrainConfig(**{**default.model_dump(), **changes})
    run_dir = RunDir(root, name)
    shutil.rmtree(run_dir.root, ignore_errors=True)
    started = time.perf_counter()
    folders = scan(
        written["unlabeled"],
        sensitive,
        prompt=config.prompt,
        sensitive_prompt=config.sensitive_prompt,
        skip_bad_images=False,
        seed=seed,
    )
    context = RunContext(
        devices.choose_device(config.device),
        ONE,
        run_dir,
        emit=lambda event, **fields: run_dir.append_event({"event": event, **fields}),
        check=lambda: None,
    )
    job = TrainingJob(config, base_model.Base(MODEL), folders)
    trained = train(job, context, is_resume=False, picture=lambda *_: None)
    train_s = time.perf_counter() - started
    found = {"setting": setting.name, "size": size, "seed": seed, "train_s": round(train_s, 1)}
    found |= {"rises": trained.loss_growth, "peak_mib": round(devices.peak_mib(trained.device))}
    found["sign_flips"] = [e for e in run_dir.events() if e["event"] == "step"][-1]["sign_flips"]
    found |= _measure(maker(trained.job, trained.network.unet), seed, captioned=setting.captioned)
    return _keep(target, found)


def _file(name: str, size: tuple[int, int], seed: int, root: Path) -> Path:
    return root / f"{name} {size[0]}-{size[1]} seed {seed}.json"


def _keep(target: Path, found: dict) -> dict:
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(target.stem, {k: found[k] for k in ("rate", "frechet", "rarest", "train_s")}, flush=True)
    return found


def _measure(make: Callable[..., np.ndarray], seed: int, *, captioned: bool) -> dict:
    judge = DigitJudge()
    rate = judge.rate(make(digits.PROMPT, _seeds(seed, PICTURES)))
    found = {"rate": rate.share, "frechet": rate.frechet, "per_class": rate.per_class}
    found["rarest"] = min(rate.per_class[n] for n in digits.NAMES[::2]) / rate.n
    if captioned:
        own = {
            d: judge.rate(make(digits.own_prompt(d), _seeds(seed, 100), guidance=OWN_PROMPT_GUIDANCE))
            for d in (*range(1, 10, 2), 4)
        }
        found["own_prompts"] = mean(own[d].share for d in range(1, 10, 2))
        found["four"] = own[4].per_class["four"] / own[4].n
    return found


def _seeds(seed: int, n: int) -> list[int]:
    return list(range(1000 * (seed + 1), 1000 * (seed + 1) + n))


def before(seed: int, root: Path) -> dict:
    """Measure the base model in the same way."""
    target = root / f"before seed {seed}.json"
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        pipe = pipeline.load_pipeline(base_model.Base(MODEL))

        def make(prompt: str, seeds: list[int], guidance: float = 1.0) -> np.ndarray:
            return generate_pictures(pipe, prompt, seeds, PictureSettings(64, 25, guidance))

        found = {"setting": "(before training)", "size": None, "seed": seed, **_measure(make, seed, captioned=True)}
        target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return json.loads(target.read_text(encoding="utf-8"))


def table(root: Path) -> str:
    """Make Markdown tables of all runs below root: mean over seeds, the lowest (of rates) or highest in brackets."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(root.glob("*.json"))]
    order = ["(before training)", *(s.name for s in SETTINGS)]
    lines = []
    for size in SIZES:
        lines += [f"\n{size[0]} unlabeled, {size[1]} sensitive images:\n"]
        heads = ("objective, temperature", "non-sensitive rate (lowest)", "Fréchet distance (highest)")
        lines += ["| " + " | ".join((*heads, "rarest even digit", "seeds")) + " |", "|---|---|---|---|---|"]
        rows = [f for f in found if f["size"] in (None, list(size))]
        for name in sorted({f["setting"] for f in rows}, key=order.index):
            group = [f for f in rows if f["setting"] == name]
            rates = [f["rate"] for f in group]
            cells = [
                name + (" *" if all("same_as" in f for f in group) else ""),
                f"{mean(rates):.3f} ({min(rates):.3f})",
                f"{mean(f['frechet'] for f in group):.1f} ({max(f['frechet'] for f in group):.1f})",
            ]
            cells += [f"{_rarest(group):.3f}", str(len(group))]
            lines.append("| " + " | ".join(cells) + " |")
    if any("same_as" in f for f in found):
        lines += ["\n\\* R was never negative, so every step was that of pu: not trained again."]
    lines += [
        "\nwith captions of their own:\n",
        "| | generic prompt | Fréchet distance | prompts of odd digits | “… digit four” is a four |",
    ]
    lines += ["|---|---|---|---|---|"]
    for name in order:
        group = [f for f in found if f["setting"] == name and "four" in f]
        if group:
            rate, own, four = (
                f"{mean(values):.3f} ({min(values):.3f})"
                for values in ([f[key] for f in group] for key in ("rate", "own_prompts", "four"))
            )
            lines.append(f"| {name} | {rate} | {mean(f['frechet'] for f in group):.1f} | {own} | {four} |")
    return "\n".join(lines)


def _rarest(group: list[dict]) -> float:
    """Return the share of the rarest even digit among the pictures of all seeds."""
    counts = [sum(f["per_class"][name] for f in group) for name in digits.NAMES[::2]]
    return min(counts) / (PICTURES * len(group))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="settings whose name holds this text")
    parser.add_argument("--size", type=int, help="only this number of unlabeled images")
    parser.add_argument("--out", type=Path, default=Path("output/experiments"))
    options = parser.parse_args()
    if options.command == "run":
        for seed in map(int, options.seeds.split(",")):
            before(seed, options.out)
            for setting in SETTINGS:
                for size in setting.sizes:
                    if options.only in setting.name and options.size in (None, size[0]):
                        run(setting, size, seed, options.out)
    print(table(options.out))


if __name__ == "__main__":
    main()
