"""Widgets made from trainer/schema.json: one source for default, range and help of every setting."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRAINER = Path(__file__).resolve().parents[1] / "trainer"
SCHEMA = TRAINER / "schema.json"
DEMO = "[built-in digits demo]"
PRESETS = {"auto": None, "low VRAM": "lowvram", "medium VRAM": "medvram", "high VRAM": "highvram"}


@functools.lru_cache(maxsize=1)
def fields() -> dict[str, dict[str, Any]]:
    """The exposed settings: name -> JSON schema."""
    return json.loads(SCHEMA.read_text(encoding="utf-8"))["fields"]


def kind_of(field: dict[str, Any]) -> str:
    """combo, boolean, integer, number or string. Optional settings count as what they are when given."""
    options = [field, *field.get("anyOf", [])]
    for option in options:
        if "enum" in option:
            return "combo"
    for option in options:
        if option.get("type") in ("boolean", "integer", "number", "string"):
            return option["type"]
    raise ValueError(f"no widget for {field}")


def limits(field: dict[str, Any]) -> tuple[float | None, float | None]:
    """Smallest and largest value; an exclusive limit is moved by a ten-thousandth."""
    field = {**field, **numeric(field)}
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    if "exclusiveMinimum" in field and kind_of(field) == "number":
        low += 1e-4 if low == 0 and (high or 1) >= 1 and not _is_fine(field.get("default")) else 1e-7
    if "exclusiveMaximum" in field:
        high -= 1 if kind_of(field) == "integer" else 1e-4
    return low, high


def numeric(field: Mapping[str, Any]) -> dict[str, Any]:
    """The numeric one of a field's types: those that may also be "auto" or unset keep their limits there."""
    return next((option for option in field.get("anyOf", []) if option.get("type") in ("integer", "number")), {})


def may_be_absent(field: Mapping[str, Any]) -> bool:
    """Whether a setting need not be given: unset or estimated is then what the trainer makes of it."""
    return field.get("default", "") is None or (field.get("default") == "auto" and bool(numeric(field)))


def make(io: Any, name: str, **changes: Any) -> Any:
    """One input of a V3 node. Args: io: comfy_api.latest.io. changes: other default, or other arguments."""
    field = fields()[name]
    low, high = limits(field)
    shared = {"tooltip": field["description"], "default": field.get("default"), **changes}
    kind, is_fine = kind_of(field), _is_fine(shared["default"])
    if shared["default"] in (None, "auto") and kind in ("integer", "number"):
        low, shared["default"] = 0, 0  # stands for "not set", see `given`
        shared["tooltip"] += "; 0: " + ("auto" if field["default"] == "auto" else "not set")
    if kind == "combo":
        return io.Combo.Input(name, options=list(field["enum"]), **shared)
    if kind == "boolean":
        return io.Boolean.Input(name, **shared)
    if kind == "integer":
        return io.Int.Input(name, min=low, max=min(high or 2**31, 2**32 - 1), **shared)
    if kind == "number":
        return io.Float.Input(name, min=low, max=high or 1000.0, step=1e-6 if is_fine else 0.01, round=False, **shared)
    return io.String.Input(name, **{**shared, "default": shared["default"] or ""})


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Widget values as settings: 0 and empty text mean "not set" where a setting may be, which the trainer knows."""
    optional = {name for name, field in fields().items() if may_be_absent(field)}
    return {name: None if name in optional and not value else value for name, value in values.items()}


def _is_fine(default: Any) -> bool:
    """Whether a number is so small that hundredths would be too coarse, as a learning rate is."""
    return isinstance(default, int | float) and default < 1e-2
