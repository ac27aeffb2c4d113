"""Who may import whom: the layout of the design, kept by a test."""

import ast
from pathlib import Path

import pytest

TRAINER = Path(__file__).parents[1] / "trainer"
EVERYWHERE = {"errors", "files"}
ALONE = {
    "__init__",
    "ckpt",
    "config",
    "diffusion",
    "errors",
    "files",
    "frozen",
    "kohya",
    "libraries",
    "lora",
    "lora_file",
}
ALONE |= {"duplicates", "memory", "mixture", "pu_loss", "randomness", "ranks", "run_dir", "stopping"}
ALLOWED = {
    **{name: set() for name in ALONE},
    # what a run's input is
    "hub": {"builtin"},
    "contradictions": {"builtin", "config", "hub"},
    "command_line": {"builtin", "config", "contradictions", "kohya"},
    "dataset": {"randomness"},
    "sheet": {"dataset"},
    "data": {"builtin", "command_line", "config", "dataset", "ranks", "sheet"},
    "draws": {"dataset", "randomness"},
    "checkpoint": {"ckpt"},
    "model": {"builtin", "checkpoint", "diffusion", "hub", "libraries"},
    "encode": {"dataset", "model", "ranks"},
    "features": {"dataset", "diffusion", "encode", "libraries", "lora", "model", "ranks", "sample"},
    "audit": {"builtin", "command_line", "config", "data", "dataset", "duplicates", "features", "hub", "memory"}
    | {"mixture", "model", "ranks", "sheet", "stopping", "switches"},
    # how much memory it takes
    "switches": {"frozen", "lora"},
    "estimate": {"diffusion", "frozen", "libraries", "lora", "switches"},
    "plan": {"builtin", "command_line", "config", "estimate", "hub", "memory", "model", "switches"},
    "bench_sides": {"dataset", "denoise", "diffusion", "draws", "gradient", "libraries", "lora", "pu_loss", "switches"},
    "bench": {"bench_sides", "estimate", "memory", "switches"},
    # training
    "gradient": {"pu_loss", "ranks"},
    "denoise": {"dataset", "diffusion", "draws", "encode"},
    "learner": {"config", "lora", "lora_file", "memory", "model", "switches"},
    "loop": {"config", "dataset", "denoise", "draws", "encode", "gradient", "learner", "lora", "memory", "model"}
    | {"pu_loss", "ranks", "switches"},
    "merge": {"checkpoint", "libraries", "model"},
    "train": {"__init__", "builtin", "config", "dataset", "draws", "encode", "loop", "lora", "lora_file", "memory"}
    | {"keep", "merge", "model", "plan", "ranks", "run_dir", "switches"},
    "keep": {"config", "dataset", "model", "sample", "switches"},
    # what comes out
    "sample": {"encode", "hub", "libraries", "memory", "model"},
    "evaluate": {"builtin", "config", "lora", "model", "run_dir", "sample", "train"},
    "report": {"config", "evaluate", "run_dir", "train"},
    "console": {"run_dir"},
    "ui": set(),
    "__main__": {"audit", "bench", "builtin", "command_line", "config", "console", "data", "dataset", "evaluate", "hub"}
    | {"model", "plan", "ranks", "report", "run_dir", "sample", "stopping", "train", "ui"},
}


def own_imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name.split(".")[0] for name in names}
    return {"__init__" if name == "__version__" else name for name in found}


def test_every_module_is_listed():
    assert {path.stem for path in TRAINER.glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_stay_in_their_layer(name):
    assert own_imports(TRAINER / f"{name}.py") <= ALLOWED[name] | EVERYWHERE


def test_imports_inside_the_package_are_relative():
    for path in TRAINER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not any(n.split(".")[0] == "trainer" for n in names), path


def test_what_answers_at_once_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, trainer.__main__, trainer.model, trainer.sample;"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TRAINER.parent, check=True)
    assert done.stdout.strip() == "[]"
