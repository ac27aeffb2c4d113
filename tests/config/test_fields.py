"""No dead options: every field of TrainConfig changes something that can be seen from outside.

The table's keys are exactly the fields, so a new field without an observable fails.
"""

import contextlib
import functools
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from trainer.__main__ import main
from trainer.builtin import MODEL
from trainer.config.train_config import TrainConfig
from trainer.models import base_model, lora_file
from trainer.models.networks import LoraNetwork, attach_lora

TINY = {
    "base": "builtin",
    "prompt": "a photo of a digit",
    "resolution": 64,
    "steps": 2,
    "batch_unlabeled": 2,
    "batch_sensitive": 2,
    "micro_batch": 2,
    "prior": 0.2,
    "calibration_samples": 1,
    "rank": 2,
    "lr": 1e-3,
    "warmup_steps": 0,
    "caption_dropout": 0,
    "images": 0,
    "save_precision": "fp32",
    "name": "x",
}


@dataclass(frozen=True)
class Outcome:
    code: int
    text: str
    folder: Path

    @functools.cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(next(self.folder.rglob("*[!0-9].safetensors")))

    @property
    def flat(self) -> list[float]:
        return torch.cat([t.float().flatten() for k, t in sorted(self.weights.items())]).tolist()

    @property
    def metadata(self) -> dict[str, str]:
        return lora_file.read_metadata(self.folder / "x.safetensors")

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "x" / "events.jsonl").read_text().splitlines()]

    def picture(self, name: str) -> np.ndarray:
        return np.asarray(Image.open(self.folder / "x" / "samples" / name))


def weights(outcome: Outcome) -> Any:
    return outcome.flat


def shapes(outcome: Outcome) -> Any:
    return {k: tuple(v.shape) for k, v in outcome.weights.items()}


def alphas(outcome: Outcome) -> Any:
    return {v.item() for k, v in outcome.weights.items() if k.endswith("alpha")}


def dtypes(outcome: Outcome) -> Any:
    return {v.dtype for v in outcome.weights.values()}


def code_and_text(outcome: Outcome) -> Any:
    return outcome.code, "sees 0 CUDA" in outcome.text


def exit_code(outcome: Outcome) -> Any:
    return outcome.code


def step_shape(outcome: Outcome) -> Any:
    return outcome.picture("step000001.png").shape


def files(outcome: Outcome) -> Any:
    return {p.name for p in outcome.folder.rglob("*") if p.suffix in (".png", ".safetensors") and "step" not in p.stem}


def folders(outcome: Outcome) -> Any:
    return {p.relative_to(outcome.folder).parent for p in outcome.folder.rglob("*") if p.is_file()}


def where(outcome: Outcome) -> Any:
    return next(outcome.folder.rglob("x.safetensors")).relative_to(outcome.folder)


def cached(outcome: Outcome) -> Any:
    return (outcome.folder / "x" / "cache").exists()


def at_once(outcome: Outcome) -> Any:
    return next(e["micro_batch"] for e in outcome.events if e.get("name") == "train")


def chosen(name: str) -> Callable[[Outcome], Any]:
    return lambda outcome: next(e[name] for e in outcome.events if e.get("name") == "train")


def warnings(outcome: Outcome) -> Any:
    return any("xformers" in e["message"] for e in outcome.events if e["event"] == "warning")


def sampled(outcome: Outcome) -> Any:
    return [e["step"] for e in outcome.events if e["event"] == "sample" and e["kind"] == "step"]


def checkpoints(outcome: Outcome) -> Any:
    return [e["step"] for e in outcome.events if e["event"] == "checkpoint"]


def states(outcome: Outcome) -> Any:
    return len(list(outcome.folder.rglob("state/step*.safetensors")))


def steps(outcome: Outcome) -> Any:
    return [e["step"] for e in outcome.events if e["event"] == "step"]


def grid(outcome: Outcome) -> Any:
    return outcome.picture("before.png").tolist()


def grid_shape(outcome: Outcome) -> Any:
    return outcome.picture("before.png").shape


def named(outcome: Outcome) -> Any:
    return (outcome.folder / "x" / "report.html").read_text(encoding="utf-8").count("By its name")


def rates(outcome: Outcome) -> Any:
    return sorted(k for k in outcome.events[-1] if k.startswith("rate_"))


def captions(outcome: Outcome) -> Any:
    return outcome.metadata.get("pu_sensitive_captions")


def text(outcome: Outcome) -> Any:
    return outcome.text


def code(outcome: Outcome) -> Any:
    return outcome.code


@dataclass(frozen=True)
class Case:
    value: Any
    observe: Callable[[Outcome], Any]
    given: dict = field(default_factory=dict)  # on both sides
    command: str = ""  # another one than training


PICTURES = {"images": 2, "sample_steps": 2}
FIXED = {"micro_batch": 1, "checkpointing": "all", "weights": "fp16", "offload": 0}  # one prediction is enough
NEGATIVE_R = {"prior": 0.99, "unlabeled": "flat", "sensitive": "noise"}  # noise is hard to denoise: E_S > E_U
CASES = {
    "base": Case("COPY", weights),
    "vae": Case("COPY/vae", weights),
    "prediction_type": Case("v", weights),
    "unlabeled": Case("flat", weights),
    "sensitive": Case("noise", weights),
    "data": Case("both", weights, {"unlabeled": None, "sensitive": None, "data": "other"}),
    "prompt": Case("the digit four", weights),
    "sensitive_prompt": Case("the digit three", weights),
    "resolution": Case(128, weights, {"unlabeled": "wide", "sensitive": "wider"}),
    "bucket": Case(False, weights, {"resolution": 128, "unlabeled": "wide", "sensitive": "wider"}),
    "flip": Case(True, weights),
    "crops": Case(4, weights),
    "caption_dropout": Case(0.9, weights),
    "clip_skip": Case(2, weights),
    "exclude": Case("EXCLUDE", weights),
    "skip_bad_images": Case(True, code, {"unlabeled": "damaged"}),
    "recursive": Case(False, weights, {"unlabeled": "nested"}),
    "folder_repeats": Case(False, weights, {"unlabeled": "nested"}),
    "caption_prefix": Case("sks", weights),
    "caption_suffix": Case("on paper", weights),
    "shuffle_caption": Case(True, weights, {"prompt": "a photo, of, a digit, white"}),
    "keep_tokens": Case(3, weights, {"prompt": "a photo, of, a digit, white", "shuffle_caption": True}),
    "max_token_length": Case(150, weights),
    "noise_offset": Case(0.3, weights),
    "objective": Case("nnpu", weights, NEGATIVE_R),
    "prior": Case(0.6, weights),
    "temperature": Case(4.0, weights),
    "temperature_mode": Case("fixed", weights),
    "sensitive_weight": Case(0.5, weights),
    "min_snr_gamma": Case(0.5, weights),
    "calibration_samples": Case(2, weights),
    "sensitive_prompt_share": Case(1.0, weights, {"sensitive_prompt": "the digit three"}),
    "keep_prompts": Case("a photo of the digit four", weights, {"sample_steps": 2}),
    "steps": Case(3, steps),
    "batch_unlabeled": Case(3, weights),
    "batch_sensitive": Case(3, weights),
    "micro_batch": Case(1, at_once),
    "checkpointing": Case("all", chosen("checkpointing")),
    "weights": Case("fp8", weights),
    "offload": Case(1, chosen("offload")),
    "attention": Case("xformers", warnings),
    "vram_budget": Case(0.01, text, {**FIXED, "vram_budget": 99}, command="plan"),  # for a card: seen in the plan
    "lr": Case(2e-3, weights),
    "warmup_steps": Case(1, weights),
    "lr_scheduler": Case("constant", weights, {"steps": 3}),
    "lr_scheduler_cycles": Case(2, weights, {"steps": 3, "lr_scheduler": "cosine_with_restarts"}),
    "lr_scheduler_power": Case(2.0, weights, {"steps": 3, "lr_scheduler": "polynomial"}),
    "max_grad_norm": Case(1e-7, weights),
    "init_lora": Case("LORA", weights),
    "weight_decay": Case(0.5, weights),
    "network": Case("full", files),
    "rank": Case(3, shapes),
    "alpha": Case(5.0, alphas),
    "optimizer": Case("adamw8bit", weights, {"rank": 64, "steps": 3}),  # small tensors stay 32-bit
    "precision": Case("bf16", weights),
    "save_precision": Case("bf16", dtypes),
    "device": Case("cuda:7", code_and_text),
    "seed": Case(5, weights),
    "name": Case("y", files),
    "output_dir": Case("elsewhere", where),
    "save_every": Case(1, files),
    "save_state_every": Case(3, checkpoints, {"steps": 4}),
    "keep_states": Case(2, states),
    "keep_cache": Case(True, cached),
    "logging_dir": Case("logs", folders),
    "log_with": Case("clearml", exit_code),  # which is not installed
    "sidecars": Case(False, files, PICTURES),
    "save_merged": Case("folder", folders),
    "metadata": Case("full", captions, {"sensitive_prompt": "the digit three"}),
    "images": Case(5, grid_shape, PICTURES),
    "sample_every": Case(1, sampled, PICTURES),
    "sample_prompts": Case("PROMPTS", step_shape, {**PICTURES, "sample_every": 1}),
    "name_prompts": Case("the digit three | a three", named, PICTURES),
    "sample_steps": Case(4, grid, PICTURES),
    "guidance": Case(1.5, grid, PICTURES),
    "rate_images": Case(4, rates, {"sample_steps": 2}),
}


@pytest.fixture(scope="module")
def piles(digit_folders, tmp_path_factory):
    """Folders by name: the digits, a flat and a noisy one, one with a broken image, and pairs for --data."""
    root = tmp_path_factory.mktemp("piles")
    rng = np.random.default_rng(0)
    for name in ("flat", "noise"):
        (root / name).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 256, (64, 64)) if name == "noise" else np.full((64, 64), 20 * i)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    for name in ("wide", "wider"):
        (root / name).mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (64, 160), dtype=np.uint8)).save(root / name / f"{i}.png")
    found = {
        **digit_folders,
        "wide": root / "wide",
        "wider": root / "wider",
        "flat": root / "flat",
        "noise": root / "noise",
    }
    for name, pair in (("other", ("unlabeled", "sensitive")), ("both", ("flat", "noise"))):
        for kind, source in zip(("unlabeled", "sensitive"), pair, strict=True):
            shutil.copytree(found[source], root / name / kind)
        found[name] = root / name
    for i, name in enumerate(("0.png", "9_more/1.png", "9_more/2.png", "1_more/3.png")):
        (root / "nested" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 60 * (i + 1), (64, 64), dtype=np.uint8)).save(root / "nested" / name)
    found["nested"] = root / "nested"
    shutil.copytree(found["unlabeled"], root / "damaged")
    (root / "damaged" / "0001.png").write_bytes(b"")
    found["damaged"] = root / "damaged"
    shutil.copytree(MODEL, root / "model")
    weights_file = root / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v * 0.9 for k, v in load_file(weights_file).items()}, weights_file, {"format": "pt"})
    weights_file = root / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({k: v * 0.9 for k, v in load_file(weights_file).items()}, weights_file, {"format": "pt"})
    found["COPY"], found["COPY/vae"] = root / "model", root / "model" / "vae"
    found["EXCLUDE"] = root / "exclude.txt"
    found["EXCLUDE"].write_text("".join(f"{i:04d}.png\n" for i in range(5)))
    found["PROMPTS"] = root / "prompts.txt"
    found["PROMPTS"].write_text("a photo of a digit --d 3\na photo of the digit two\nthe digit six --s 1")
    found["LORA"] = root / "start.safetensors"
    unet = base_model.load_unet(base_model.Base(MODEL), torch.float32)
    attach_lora(unet, rank=TINY["rank"], alpha=1.0, seed=9)
    save_file(lora_file.to_kohya(LoraNetwork(unet).weights(), alpha=1.0, dtype=torch.float32), found["LORA"])
    return found


@pytest.fixture(scope="module")
def outcome_of(piles, tmp_path_factory, quick):
    """Settings -> Outcome of a run in this process; the same settings run once."""
    made: dict[str, Outcome] = {}

    def run(settings: dict, command: str = "") -> Outcome:
        key = command + json.dumps(settings, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("run")
            output = folder / settings.get("output_dir", ".")
            arguments = [*command.split(), "--output-dir", str(output)]
            for name, value in settings.items():
                if value is None or name == "output_dir":
                    continue
                if name == "logging_dir":
                    value = folder / value
                option = "--" + name.replace("_", "-")
                if isinstance(value, bool):
                    arguments.append(option if value else option.replace("--", "--no-", 1))
                else:
                    arguments += [option, str(piles.get(value, value))]
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                status = main(arguments)
            made[key] = Outcome(status, said.getvalue(), folder)
        return made[key]

    return run


def test_the_table_holds_exactly_the_fields():
    assert CASES.keys() == TrainConfig.model_fields.keys()


@pytest.mark.parametrize("name", CASES)
def test_field_changes_something(name, outcome_of):
    case = CASES[name]
    settings = {**TINY, "unlabeled": "unlabeled", "sensitive": "sensitive", **case.given}
    before, after = (outcome_of(s, case.command) for s in (settings, {**settings, name: case.value}))
    refused = name in ("device", "skip_bad_images", "vram_budget", "log_with")
    assert refused or (before.code, after.code) == (0, 0), before.text + after.text
    assert case.observe(before) != case.observe(after)


def test_the_comparison_itself_can_fail(outcome_of, tmp_path):
    """Two runs with the same settings, not served from the cache, are equal in every observable of weights."""
    settings = {**TINY, "unlabeled": "unlabeled", "sensitive": "sensitive"}
    one, two = outcome_of(settings), outcome_of({**settings, "seed": 0})
    assert one.folder != two.folder
    assert weights(one) == weights(two)


def test_a_resumed_run_goes_on_with_the_cosine_of_its_new_length(trainer, digit_folders, tmp_path):
    pairs = {"unlabeled": digit_folders["unlabeled"], "sensitive": digit_folders["sensitive"], "base": "builtin"}
    pairs |= {"prompt": "x", "resolution": 64, "steps": 4, "lr": 1e-3, "batch-unlabeled": 2, "batch-sensitive": 2}
    pairs |= {"calibration-samples": 1, "rank": 2, "images": 0, "warmup-steps": 0, "prior": "auto"}
    call = [word for name, value in pairs.items() for word in (f"--{name}", value)]
    first = trainer(*call, "--output-dir", tmp_path)
    assert first.returncode == 0, first.stderr
    unnamed = trainer("--resume", "--output-dir", tmp_path)  # this one is finished
    assert (unnamed.returncode, "holds no interrupted run" in unnamed.stderr) == (2, True)
    arguments = [*call, "--resume", "--name", "pu-lora", "--output-dir", tmp_path]
    refused = trainer(*arguments, "--steps", 3)
    assert (refused.returncode, "has done 4 already" in refused.stderr) == (2, True)
    longer = trainer(*arguments, "--steps", 6, "--save-state-every", 1, "--sample-every", 5)
    assert longer.returncode == 0, longer.stderr
    events = [json.loads(line) for line in (tmp_path / "pu-lora" / "events.jsonl").read_text().splitlines()]
    steps = [e for e in events if e["event"] == "step"]
    assert [(e["step"], e["of"]) for e in steps] == [(1, 4), (2, 4), (3, 4), (4, 4), (5, 6), (6, 6)]
    cosine = [0.5e-3 * (1 + math.cos(math.pi * k / of)) for k, of in [(0, 4), (1, 4), (2, 4), (3, 4), (4, 6), (5, 6)]]
    assert [e["lr"] for e in steps] == pytest.approx(cosine)
    assert [e["step"] for e in events if e["event"] == "checkpoint"][-2:] == [5, 6]
    assert [e["step"] for e in events if e["event"] == "sample" and e["kind"] == "step"] == [5]
