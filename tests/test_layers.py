"""Which package may import which: six floors, one line for each package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TRAINER = Path(__file__).parents[1] / "trainer"
FLOORS_1_TO_3 = "builtin config models objective data memory reporting"
ALLOWED = {  # beside common, which every package may import
    "common": "",
    "builtin": "",
    "config": "builtin",
    "models": "builtin",
    "objective": "",
    "data": "builtin config models",
    "memory": "builtin config models",
    "reporting": "config",
    "metrics": "builtin objective data",
    "audit": FLOORS_1_TO_3,
    "generation": FLOORS_1_TO_3,
    "training": f"{FLOORS_1_TO_3} audit generation metrics",
    "experiments": f"{FLOORS_1_TO_3} audit generation metrics training",
    "evaluation": f"{FLOORS_1_TO_3} audit generation metrics training",
    "__main__": "builtin config data memory training",  # its other commands are imported by name: see COMMANDS
    "ui": "",
    "__init__": "",
}


def packages_imported_by(path: Path) -> set[str]:
    """The packages of trainer/ that a module imports, its own left out; also imports inside functions."""
    own = path.relative_to(TRAINER).parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == len(own):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name.split(".")[0] for name in names}
    return found - {"__version__"}


def modules_of(package: str) -> list[Path]:
    folder = TRAINER / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def test_every_package_is_listed():
    packages = {path.parent.name for path in TRAINER.glob("*/__init__.py")}
    assert packages | {path.stem for path in TRAINER.glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_from_lower_floors_only(package):
    allowed = {"common", *ALLOWED[package].split()} - ({"common"} if package == "common" else set())
    for path in modules_of(package):
        assert packages_imported_by(path) <= allowed | {package}, path


def test_there_are_six_floors():
    floor = {}
    for (
        package,
        below,
    ) in ALLOWED.items():  # listed from the lowest floor up: a circle or an import upwards is a KeyError
        used = set(below.split()) | ({"common"} if package not in ("common", "builtin", "__init__") else set())
        floor[package] = 1 + max((floor[other] for other in used), default=0)
    assert max(floor.values()) == 6


def test_no_package_is_a_crowd():
    for folder in {path.parent for path in TRAINER.rglob("*.py")}:
        assert len(list(folder.glob("*.py"))) <= 12, folder


def test_packages_re_export_nothing():
    """A re-export would import torch for --help."""
    for path in TRAINER.glob("*/__init__.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert path.parent.name == "builtin" or (len(body) == 1 and ast.get_docstring(ast.Module(body, []))), path


def test_few_functions_have_many_parameters():
    found = []
    for path in TRAINER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                n = len([a for a in arguments if a.arg != "self"])
                found += [f"{path.relative_to(TRAINER)}:{node.name} {n}"] if n >= 7 else []
    assert len(found) <= 5, found


def test_imports_inside_the_package_are_relative():
    for path in TRAINER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not any(n.split(".")[0] == "trainer" for n in names), path


def test_what_answers_at_once_imports_nothing_heavy():
    modules = "__main__ models.base_model generation.sample_command evaluation.command generation.make_data_command"
    code = (
        "import sys, importlib\n"
        f"for name in '{modules} evaluation.compare_command audit.command'.split():\n"
        "    importlib.import_module('trainer.' + name)\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=TRAINER.parent, check=True)
    assert done.stdout.strip() == "[]"
