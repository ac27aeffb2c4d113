"""Widgets and words: the trainer's messages as a node shows them."""

import ast
import types
from pathlib import Path

import pytest

from pu_node import widgets

TRAINER = Path(__file__).parents[2] / "trainer"
# What nodes start. The rest talks to people at a terminal: the parser's own words, experiments, other commands.
SPEAKS = [
    "audit/ranking.py",
    "audit/features.py",
    "audit/auto_prior.py",
    "config/validation.py",
    "evaluation/findings.py",
]
SPEAKS += [f"{package}/*.py" for package in ("common", "data", "generation", "memory", "metrics", "models", "training")]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "out of memory. Try --lowvram or a smaller --rank.",
            'out of memory. Try preset "low VRAM" or a smaller rank.',
        ),
        ("--skip-bad-images: 2 images", "skip bad images: 2 images"),
        ("--base: no such file", "checkpoint: no such file"),
        ("--n-contaminate: too many", "n_contaminate: too many"),
        ("a --strange-word that no widget has", "a strange word that no widget has"),
        ("a smaller --lr, --prior or --batch-sensitive", "a smaller learning rate, prior or sensitive images a step"),
        ("Largest saving still off: --offload all (2 MiB).", 'Largest saving still off: preset "low VRAM" (2 MiB).'),
        ("--precision fp16 on a card, or --device cpu.", "precision fp16 on a card, or the CPU."),
        ("sheet.png\ntrain with: python -m trainer --base x\nprior 1", "sheet.png\nprior 1"),
        ("stopped; to continue: python -m trainer --resume", "stopped;"),
        ("images -- and nothing else", "images -- and nothing else"),
    ],
)
def test_messages_name_widgets(message, shown):
    assert widgets.in_node_words(message) == shown


def test_no_tooltip_speaks_of_the_command_line():
    kinds = ("Combo", "Boolean", "Int", "Float", "String")
    io = types.SimpleNamespace(**{k: types.SimpleNamespace(Input=lambda *_, **names: names) for k in kinds})
    for name in widgets.fields():
        assert "--" not in widgets.make(io, name)["tooltip"], name


def texts_of(path):
    """Every text in a module, docstrings left out; what an f-string fills in is an x."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (silent | parts):
            yield node.value


def test_no_text_of_the_trainer_reaches_a_node_in_words_of_the_command_line():
    """Whatever it says, in errors, warnings and results: no option, and no command to type."""
    paths = [path for pattern in SPEAKS for path in TRAINER.glob(pattern)]
    texts = [text for path in paths for text in texts_of(path)]
    spoken = [text for text in texts if "--" in text or "python -m" in text]
    assert len(spoken) > 80
    for text in spoken:
        shown = widgets.in_node_words(text)
        assert not widgets.OPTION.search(shown), text
        assert "python -m" not in shown, text
