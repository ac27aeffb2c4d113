"""The tools around the code agree: one version of ruff, and a workflow that runs what .ci/run runs."""

import re
from pathlib import Path

from trainer.config.arguments import tomllib

ROOT = Path(__file__).parents[1]
EXTRA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]["test"]


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


def test_pre_commit_runs_the_ruff_of_the_test_extra():
    (pinned,) = (line.removeprefix("ruff==") for line in EXTRA if line.startswith("ruff"))
    found = text(".pre-commit-config.yaml")
    assert re.findall(r"rev: v(\S+)", found) == [pinned]
    assert re.findall(r"id: (\S+)", found) == ["ruff-check", "ruff-format"]


def test_what_ci_runs_is_installed_by_the_test_extra():
    """Each program and each plugin that the script calls."""
    names = {re.split(r"[<=>]", line)[0] for line in EXTRA}
    called = set(re.findall(r"^(?:python -m )?(ruff|mypy|pytest)\b", text(".ci/run"), re.MULTILINE))
    assert called == {"ruff", "mypy", "pytest"}
    assert called | {"pytest-cov", "pytest-xdist"} <= names
    assert ".ci/run" in re.findall(r"- run: (.+)", text(".github/workflows/ci.yml"))
    assert "contents: read" in text(".github/workflows/ci.yml")
