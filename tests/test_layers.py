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
    "full",
    "page",
    "sample_options",
    "stats",
}
ALONE |= {"duplicates", "memory", "mixture", "pu_loss", "randomness", "ranks", "stopping"}
ALLOWED = {
    **{name: set() for name in ALONE},
    # what a run's input is
    "hub": {"builtin"},
    "contradictions": {"builtin", "config", "hub"},
    "command_line": {"builtin", "config", "contradictions", "kohya"},
    "dataset": {"randomness"},
    "sheet": {"dataset"},
    "data": {"builtin", "command_line", "config", "dataset", "ranks", "sheet"},
    "draws": {"config", "dataset", "randomness"},
    "checkpoint": {"ckpt"},
    "model": {"builtin", "checkpoint", "diffusion", "hub", "libraries"},
    "encode": {"dataset", "model", "ranks"},
    "features": {"dataset", "diffusion", "encode", "libraries", "lora", "model", "ranks", "sample", "switches"},
    "audit": {"builtin", "command_line", "config", "console", "data", "dataset", "duplicates", "features", "hub"}
    | {"memory", "mixture", "model", "page", "prior", "ranks", "sheet", "stopping", "switches"},
    "prior": {"config", "dataset", "features", "mixture", "model", "switches"},
    "recipe": {"builtin", "command_line", "config", "contradictions", "randomness"},
    "manifest": {"dataset", "recipe"},
    "made_page": {"page"},
    "make_data": {"console", "dataset", "hub", "made_page", "manifest", "memory", "model", "recipe", "sample", "sheet"}
    | {"stopping", "switches"},
    # how much memory it takes
    "switches": {"frozen", "lora"},
    "estimate": {"diffusion", "frozen", "full", "libraries", "lora", "switches"},
    "plan": {"builtin", "command_line", "config", "estimate", "hub", "memory", "model", "switches"},
    "bench_sides": {"dataset", "denoise", "diffusion", "draws", "gradient", "libraries", "lora", "pu_loss", "switches"},
    "bench": {"bench_sides", "estimate", "memory", "switches"},
    # training
    "gradient": {"pu_loss", "ranks"},
    "denoise": {"dataset", "diffusion", "draws", "encode"},
    "learner": {"config", "full", "lora", "lora_file", "memory", "model", "switches"},
    "loop": {"config", "dataset", "denoise", "draws", "encode", "gradient", "learner", "memory", "pu_loss", "ranks"}
    | {"switches"},
    "resume": {"config", "dataset", "encode", "model", "switches"},
    "merge": {"checkpoint", "libraries", "model"},
    "save": {"__init__", "builtin", "config", "dataset", "loop", "lora", "lora_file", "merge", "model", "run_dir"}
    | {"switches"},
    "train": {
        "config",
        "dataset",
        "draws",
        "encode",
        "full",
        "keep",
        "learner",
        "loop",
        "lora",
        "memory",
        "model",
        "plan",
    }
    | {"prior", "ranks", "resume", "run_dir", "save", "switches"},
    "keep": {"config", "dataset", "model", "sample", "switches"},
    # what comes out
    "sample": {"encode", "hub", "libraries", "memory", "model", "sample_options", "switches"},
    "before_after": {"builtin", "config", "lora", "model", "run_dir", "sample", "train"},
    "report": {"before_after", "builtin", "config", "page", "run_dir", "train"},
    "run_dir": {"config"},
    "console": {"run_dir", "stopping"},
    # does it work?
    "judges": {"dataset", "libraries", "mixture", "stats"},
    "quality": {"judges", "stats"},
    "studio": {"console", "memory", "model", "sample", "switches"},
    "attacks": {"before_after", "config", "console", "dataset", "diffusion", "encode", "model", "ranks", "run_dir"}
    | {"sample", "studio", "train"},
    "evaluate_options": {"builtin", "command_line", "config", "judges", "sample_options"},
    "shots": {"attacks", "console", "evaluate_options", "model", "studio"},
    "findings": {"shots", "evaluate_options", "judges", "page", "quality", "sample", "stats"},
    "evaluate": {"builtin", "console", "dataset", "evaluate_options", "features", "findings", "hub", "judges", "memory"}
    | {"model", "quality", "shots", "stopping", "switches"},
    "runs": {"command_line", "config", "run_dir"},
    "sweep": {"builtin", "command_line", "config", "evaluate_options", "run_dir", "runs"},
    "compare": {"config", "console", "judges", "page", "report", "runs", "stopping", "sweep"},
    "ui": set(),
    # its other commands are imported by name: see COMMANDS
    "__main__": {"before_after", "builtin", "command_line", "config", "console", "data", "dataset", "hub", "memory"}
    | {"libraries", "model", "plan", "ranks", "report", "run_dir", "save", "stopping", "train"},
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
        "import trainer.evaluate, trainer.make_data, trainer.compare;"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TRAINER.parent, check=True)
    assert done.stdout.strip() == "[]"
