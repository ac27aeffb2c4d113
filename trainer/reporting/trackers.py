"""Trackers of experiments, through accelerate: each step's numbers, and the settings that others may see."""

from collections.abc import Mapping
from typing import Any

PROJECT = "pu-unlearn"
NAMED = ("wandb", "trackio", "swanlab")  # whose runs have a name beside their project's


class Tracker:
    """One run at one tracker. Begun at the first step: it may ask the network."""

    def __init__(self, kind: str, run_name: str, settings: Mapping[str, Any]) -> None:
        """Begin a run.

        Args: kind: one of accelerate's names. settings: what the tracker shows as the run's configuration.
        Raises: RuntimeError if accelerate cannot use the tracker, and whatever the tracker raises.
        """
        from accelerate import Accelerator

        key = "experiment_name" if kind == "swanlab" else "name"
        known = {name: value for name, value in settings.items() if value is not None}
        self._accelerator = Accelerator(log_with=kind)
        self._accelerator.init_trackers(
            PROJECT if kind in NAMED else run_name, known, {kind: {key: run_name}} if kind in NAMED else {}
        )
        if not self._accelerator.trackers:
            raise RuntimeError(f"this version of accelerate does not find {kind}")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers of a step."""
        self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until everything has been sent."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
