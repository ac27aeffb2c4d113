"""Make widgets from trainer/schema.json: one source for default, range and help of every setting."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRAINER = Path(__file__).resolve().parents[1] / "trainer"
SCHEMA = TRAINER / "schema.json"
DEMO = "[built-in digits demo]"
CATEGORY = "PU Unlearn"
PRESETS = {"auto": None, "low VRAM": "lowvram", "medium VRAM": "medvram", "high VRAM": "highvram"}
LABELS = {  # of settings whose name does not say enough, or shows an underscore
    "lr": "learning rate",
    "prior": "prior (0: estimated from the images)",
    "temperature": "temperature (strength)",
    "sensitive_prompt": "sensitive prompt",
    "bucket": "keep image shapes",
    "flip": "mirror half of the images",
    "crops": "crops of each image",
    "caption_dropout": "share without caption",
    "clip_skip": "CLIP skip",
    "temperature_mode": "temperature mode",
    "min_snr_gamma": "min-SNR gamma (0: off)",
    "sensitive_prompt_share": "share under sensitive prompts",
    "keep_prompts": "prompts to keep, with | between",
    "batch_unlabeled": "unlabeled images a step",
    "batch_sensitive": "sensitive images a step",
    "skip_bad_images": "skip bad images",
    "caption_prefix": "text before each caption",
    "caption_suffix": "text after each caption",
    "shuffle_caption": "shuffle tags",
    "keep_tokens": "tags that stay in front",
    "max_token_length": "tokens of a caption",
    "noise_offset": "noise offset",
    "lr_scheduler": "learning rate schedule",
    "init_lora": "LoRA to continue",
}
STEPS = {"lr": 1e-6, "prior": 1e-3}  # of number widgets; others go by hundredths
SEARCHED_AS = ["unlearn", "erase", "forget", "never", "remove concept", "censor", "safety", "LoRA training"]

OPTION = re.compile(r"--([a-z][a-z0-9-]*)")  # of the trainer's command line, in its messages
COMMAND_LINE = re.compile(r"[^\n.;:]*[:;]?[^\n.;:]*\bpython -m trainer\b[^\n]*\n?")  # a clause with a command to run
SAVED_BY_PRESET = re.compile(r"--(?:micro-batch 1|checkpointing all|weights fp8|offload all)")
OTHER_WORDS = {  # options that nodes ask for under another name, or not at all
    **{option: f'preset "{preset}"' for preset, option in PRESETS.items() if option},
    "base": "checkpoint",
    "lora": "lora_name",
    "n": "pictures",
    "out": "folder",
    "help": "the help page",
}


@functools.lru_cache(maxsize=1)
def fields() -> dict[str, dict[str, Any]]:
    """Return the exposed settings: name -> JSON schema."""
    return json.loads(SCHEMA.read_text(encoding="utf-8"))["fields"]


def in_node_words(message: str) -> str:
    """Return a message of the trainer in the words of the nodes: labels of widgets in place of options, no commands."""

    def widget(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return OTHER_WORDS.get(name) or label(name).partition(" (")[0]

    found = SAVED_BY_PRESET.sub(OTHER_WORDS["lowvram"], COMMAND_LINE.sub("", message))
    return OPTION.sub(widget, found.replace("--device cpu", "the CPU")).strip()


def label(name: str) -> str:
    """Return what a widget is called on a node. Options without a widget are called by their words."""
    if name in LABELS:
        return LABELS[name]
    return name if name in fields() or name in OWN_WIDGETS else name.replace("_", " ")


OWN_WIDGETS = (  # of nodes, beside the settings of the schema
    *("unlabeled", "sensitive", "resolution", "labeled", "retain_prompts", "n_unlabeled", "n_contaminate"),
    *("n_sensitive", "unlabeled_prompt", "contaminate_prompt", "negative_prompt", "guidance", "sampler", "top"),
)


def kind_of(field: Mapping[str, Any]) -> str:
    """Return combo, boolean, integer, number or string: of an optional setting, what it is when it is set."""
    options = [field, *field.get("anyOf", [])]
    for option in options:
        if "enum" in option:
            return "combo"
    for option in options:
        if option.get("type") in ("boolean", "integer", "number", "string"):
            return option["type"]
    raise ValueError(f"no widget for {field}")


def limits(field: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the smallest and the largest value; an exclusive limit is moved by a ten-thousandth."""
    field = {**field, **numeric(field)}
    low, high = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    is_whole = kind_of(field) == "integer"
    if above is not None:
        is_coarse = above == 0 and (high or below or 1) >= 1 and not _is_fine(field.get("default"))
        low = above if is_whole else above + (1e-4 if is_coarse else 1e-7)
    if below is not None:
        high = below - (1 if is_whole else 1e-4)
    return low, high


def numeric(field: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numeric one of a field's types: settings that may also be "auto" or unset have their limits there."""
    return next((option for option in field.get("anyOf", []) if option.get("type") in ("integer", "number")), {})


def may_be_absent(field: Mapping[str, Any]) -> bool:
    """Return whether a setting may be left unset: the trainer then ignores or estimates it."""
    return field.get("default", "") is None or (field.get("default") == "auto" and bool(numeric(field)))


def make(io: Any, name: str, **changes: Any) -> Any:
    """Return one input of a V3 node. Args: io: comfy_api.latest.io. changes: another default, or other arguments."""
    field = fields()[name]
    low, high = limits(field)
    shared = {"tooltip": in_node_words(field["description"]), "default": field.get("default"), **changes}
    kind = kind_of(field)
    if shared["default"] in (None, "auto") and kind in ("integer", "number"):
        low, shared["default"] = 0, 0  # means "not set", see `given`
        shared["tooltip"] = shared["tooltip"].replace("auto: ", "0: ")
    if name in LABELS:
        shared["display_name"] = LABELS[name]
    if kind == "combo":
        return io.Combo.Input(name, options=list(field["enum"]), **shared)
    if kind == "boolean":
        return io.Boolean.Input(name, **shared)
    if kind == "integer":
        if name == "seed":  # the page would give a fresh node "randomize": it would train again with every Run
            shared["control_after_generate"] = "fixed"
        return io.Int.Input(name, min=low, max=min(high or 2**31, 2**32 - 1), **shared)
    if kind == "number":
        step = STEPS.get(name, 0.01)
        return io.Float.Input(name, min=low, max=high or 1000.0, step=step, round=step, **shared)
    return io.String.Input(name, **{**shared, "default": shared["default"] or ""})


def schema(io: Any, **words: Any) -> Any:
    """Return a node's schema, found by the words that people search for where the host knows such words."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    aliases = {"search_aliases": SEARCHED_AS} if "search_aliases" in known else {}
    return io.Schema(category=CATEGORY, **aliases, **words)


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Return widget values as settings: 0 and empty text become None where a setting may be left unset."""
    optional = {name for name, field in fields().items() if may_be_absent(field)}
    return {name: None if name in optional and not value else value for name, value in values.items()}


def _is_fine(default: Any) -> bool:
    """Return whether a number, such as a learning rate, needs finer steps than hundredths."""
    return isinstance(default, int | float) and default < 1e-2
