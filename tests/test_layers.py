"""Who may import whom: the layout of the design, kept by a test."""

import ast
from pathlib import Path

import pytest

TRAINER = Path(__file__).parents[1] / "trainer"
EVERYWHERE = {"errors", "files"}
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "files": set(),
    "config": set(),
    "kohya": set(),
    "command_line": {"builtin", "config", "kohya", "model"},
    "randomness": set(),
    "dataset": {"randomness"},
    "draws": {"dataset", "randomness"},
    "diffusion": set(),
    "pu_loss": set(),
    "ranks": set(),
    "gradient": {"pu_loss", "ranks"},
    "checkpoint": set(),
    "model": {"builtin", "checkpoint", "diffusion"},
    "lora": set(),
    "lora_file": set(),
    "memory": set(),
    "run_dir": set(),
    "encode": {"dataset", "model", "ranks"},
    "denoise": {"dataset", "diffusion", "draws", "encode"},
    "frozen": set(),
    "switches": {"frozen", "lora"},
    "estimate": {"diffusion", "frozen", "lora", "model", "switches"},
    "plan": {"builtin", "command_line", "config", "estimate", "memory", "model", "switches"},
    "sheet": {"dataset"},
    "merge": {"checkpoint", "model"},
    "bench": {
        "dataset",
        "denoise",
        "diffusion",
        "draws",
        "gradient",
        "estimate",
        "lora",
        "memory",
        "model",
        "pu_loss",
        "switches",
    },
    "loop": {
        "switches",
        "ranks",
        "lora_file",
        "config",
        "dataset",
        "denoise",
        "draws",
        "encode",
        "gradient",
        "lora",
        "memory",
        "model",
        "pu_loss",
    },
    "train": {
        "__init__",
        "builtin",
        "config",
        "dataset",
        "draws",
        "encode",
        "loop",
        "lora",
        "lora_file",
        "memory",
        "model",
    }
    | {"merge", "plan", "ranks", "run_dir", "switches"},
    "sample": {"encode", "memory", "model"},
    "evaluate": {"builtin", "config", "lora", "model", "run_dir", "sample", "train"},
    "report": {"config", "evaluate", "run_dir", "train"},
    "console": {"run_dir"},
    "__main__": {
        "bench",
        "builtin",
        "command_line",
        "config",
        "console",
        "dataset",
        "evaluate",
        "model",
        "plan",
        "ranks",
        "report",
        "run_dir",
        "sample",
        "sheet",
        "train",
    },
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
