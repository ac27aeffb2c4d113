"""The comparisons of docs/results.md on the built-in digits: objectives, temperatures, sizes; other shares and kinds.

    python -m trainer.experiments.digits run [--seeds 0,1,2] [--only TEXT]    a few minutes a run; skips finished runs
    python -m trainer.experiments.digits tasks [--seeds 0] [--only TEXT]      the same for TASKS
    python -m trainer.experiments.digits table                                prints the tables

Every run trains through `training.run` on PNG folders as a user's run does. The rate is over 500 pictures of seeds that
no other run uses (DDIM, 25 steps, no guidance); the Fréchet distance is on the classifier's features to 500 held-out
real even digits; the last figure is the share of the rarest even digit among the pictures of all seeds.
"""

import argparse
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from ..builtin import CONFIG, MODEL, digits
from ..common.distributed import ONE
from ..common.files import write_text
from ..config.arguments import parse
from ..config.train_config import TrainConfig
from ..data.folders import Reading, scan
from ..data.images import save_images
from ..data.job import TrainingJob
from ..generation.generate import PictureSettings, generate_pictures
from ..memory import devices
from ..metrics.digit_judge import DigitJudge
from ..metrics.statistics import frechet_distance
from ..models import base_model, pipeline
from ..reporting.run_context import RunContext
from ..reporting.run_dir import RunDir
from ..training.before_after import maker
from ..training.learner import TrainedModel
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


ODD = (1, 3, 5, 7, 9)


@dataclass(frozen=True)
class Task:
    """Which digits are sensitive, and how many of them are hidden among how many unlabeled images."""

    sensitive: tuple[int, ...]
    share: float
    unlabeled: int
    labeled: int

    @property
    def normal(self) -> list[int]:
        """Return the other digits."""
        return [digit for digit in range(10) if digit not in self.sensitive]


TASKS = {  # as large as the 500 digits allow
    "odd, 5 %": Task(ODD, 0.05, 320, 60),
    "odd, 10 %": Task(ODD, 0.1, 320, 60),
    "odd, 20 %": Task(ODD, 0.2, 400, 60),
    "odd, 40 %": Task(ODD, 0.4, 280, 60),
    "four, 10 %": Task((4,), 0.1, 300, 20),
    "seven, 10 %": Task((7,), 0.1, 160, 20),
    "odd, 20 % of 40, 5 examples": Task(ODD, 0.2, 40, 5),
}
TASK_PICTURES = 300
WEIGHTS: dict[str, dict] = {  # of the sensitive risk; the true prior is given where nothing else is said
    "the paper's weight, temperature 3": {"temperature": 3.0, "sensitive_weight": "prior"},
    "default": {},
    "default, prior estimated": {"prior": "auto"},
}

STRONG = {"temperature": 3.0, "sensitive_weight": digits.SENSITIVE_SHARE}  # the default until the tasks were measured
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
    Setting("supervised, per timestep", {"objective": "supervised", **STRONG}),
    Setting("pu, fixed 1", {"objective": "pu", **FIXED}),
    Setting("pu, per timestep", STRONG),
    Setting("pu, per timestep, prior estimated", {"prior": "auto", **STRONG}, sizes=SIZES[:1]),
    Setting("nnpu, fixed 1", {"objective": "nnpu", **FIXED}, twin="pu, fixed 1"),
    Setting("nnpu, per timestep", {"objective": "nnpu", **STRONG}, twin="pu, per timestep"),
    *(
        Setting(
            f"pu, per timestep, own captions{what}", {"keep_prompts": kept, **STRONG}, captioned=True, sizes=SIZES[:1]
        )
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
    changes = {"prior": digits.SENSITIVE_SHARE, **setting.changes}
    trained, found = _train(name, written["unlabeled"], sensitive, changes, seed, root)
    found = {"setting": setting.name, "size": size, **found}
    found |= _measure(maker(trained.job, trained.network.unet), seed, captioned=setting.captioned)
    return _keep(target, found)


def _train(
    name: str, unlabeled: Path, sensitive: Path, changes: dict, seed: int, root: Path
) -> tuple[TrainedModel, dict]:
    """Train with the built-in default but for some changes. Returns: what was trained, and the run's figures."""
    changes = {"name": name, "output_dir": root, "seed": seed, **changes}
    changes |= {"unlabeled": unlabeled, "sensitive": sensitive}
    config = TrainConfig(**{**parse([], CONFIG).config.model_dump(), **changes})
    run_dir = RunDir(root, name)
    shutil.rmtree(run_dir.root, ignore_errors=True)
    started = time.perf_counter()
    reading = Reading(prompt=config.prompt, sensitive_prompt=config.sensitive_prompt)
    folders = scan(unlabeled, sensitive, reading, seed=seed)
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
    found: dict[str, Any] = {"seed": seed, "train_s": round(train_s, 1), "negative_steps": trained.negative_steps}
    found["prior"] = trained.job.config.prior
    found |= {"rises": trained.loss_growth, "peak_mib": round(devices.peak_mib(trained.device))}
    found["sign_flips"] = [e for e in run_dir.events() if e["event"] == "step"][-1]["sign_flips"]
    return trained, found


def run_task(name: str, weight: str, seed: int, root: Path) -> dict:
    """Train on one of TASKS and measure. Returns: the row's figures, also saved as JSON below root."""
    target = root / "tasks" / f"{name}, {weight}, seed {seed}.json"
    if target.exists():
        return json.loads(target.read_text(encoding="utf-8"))
    task, run_name = TASKS[name], target.stem.replace(",", "").replace("%", "percent").replace("'", "")
    unlabeled, sensitive = _write_task(task, seed, target.parent / f"{run_name} images")
    changes: dict[str, Any] = {"prior": task.share, **WEIGHTS[weight]}
    if changes.get("sensitive_weight") == "prior":
        changes["sensitive_weight"] = task.share
    trained, found = _train(run_name, unlabeled, sensitive, changes, seed, target.parent)
    pictures = maker(trained.job, trained.network.unet)(digits.PROMPT, _seeds(seed, TASK_PICTURES))
    judge = DigitJudge()
    labels, features = judge.classify(pictures)
    shares, base = np.bincount(labels, minlength=10) / len(labels), _base_shares(seed, target.parent)
    found["kept"] = float((shares[task.normal] / base[task.normal]).min())
    found |= {"task": name, "weight": weight, "shares": shares.tolist(), "rate": float(shares[task.normal].sum())}
    found |= {"rarest": float(shares[task.normal].min())}
    found["frechet"] = frechet_distance(features, judge.real_features_of(task.normal))
    return _keep(target, found)


def _base_shares(seed: int, root: Path) -> np.ndarray:
    """Return how often the base model makes each digit, [10], from the seeds that a task's pictures have."""
    target = root / f"base model, seed {seed}.txt"
    if not target.exists():
        make, settings = pipeline.load_pipeline(base_model.Base(MODEL)), PictureSettings(64, 25, 1.0)
        labels = DigitJudge().classify(generate_pictures(make, digits.PROMPT, _seeds(seed, TASK_PICTURES), settings))[0]
        shares = np.bincount(labels, minlength=10) / len(labels)
        write_text(target, " ".join(map(str, shares)))
    return np.loadtxt(target)


def _write_task(task: Task, seed: int, root: Path) -> tuple[Path, Path]:
    """Write a task's folders, with other images for each seed, balanced over the classes. Returns: both."""
    pool, rng = digits.load("folders"), np.random.default_rng(100 + seed)

    def draw(labels: Sequence[int], n: int, used: Sequence[int] = ()) -> list[int]:
        left = {
            label: list(rng.permutation([i for i in np.flatnonzero(pool.labels == label) if i not in used]))
            for label in labels
        }
        found: list[int] = []
        while len(found) < n:
            found += [left[label].pop() for label in labels if left[label]]
        return found[:n]

    labeled = draw(task.sensitive, task.labeled)
    hidden = draw(task.sensitive, round(task.unlabeled * task.share), used=labeled)
    normal = draw(task.normal, task.unlabeled - len(hidden))
    kinds = {"unlabeled": list(rng.permutation(hidden + normal)), "sensitive": labeled}
    for kind, chosen in kinds.items():
        save_images(digits.render(pool.images[chosen]), root / kind, range(len(chosen)))
    return root / "unlabeled", root / "sensitive"


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


def task_table(root: Path) -> str:
    """Make a Markdown table of all tasks measured below root, one line for each seed and weight."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / "tasks").glob("*.json"))]
    found.sort(key=lambda f: (list(TASKS).index(f["task"]), f["seed"], list(WEIGHTS).index(f["weight"])))
    heads = ("sensitive, share", "seed", "weight", "prior", "rate", "Fréchet distance", "rarest normal digit")
    lines = ["| " + " | ".join((*heads, "lowest share ÷ before", "R negative")) + " |", "|" + 9 * "---|"]
    for f in found:
        cells = [f["task"], str(f["seed"]), f["weight"], f"{f.get('prior', math.nan):.2f}", f"{f['rate']:.3f}"]
        cells += [f"{f['frechet']:.1f}", f"{f['rarest']:.3f}", f"{f.get('kept', math.nan):.2f}"]
        cells += [f"{f['negative_steps']} steps"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rarest(group: list[dict]) -> float:
    """Return the share of the rarest even digit among the pictures of all seeds."""
    counts = [sum(f["per_class"][name] for f in group) for name in digits.NAMES[::2]]
    return min(counts) / (PICTURES * len(group))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "tasks", "table"))
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
    if options.command == "tasks":
        for seed in map(int, options.seeds.split(",")):
            for name, weight in itertools.product(TASKS, WEIGHTS):
                if options.only in f"{name}, {weight}":
                    run_task(name, weight, seed, options.out)
    print(table(options.out))
    print(task_table(options.out))


if __name__ == "__main__":
    main()
