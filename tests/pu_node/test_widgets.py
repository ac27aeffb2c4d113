"""Widgets and words: the trainer's messages as a node shows them."""

import types

import pytest

from pu_node import widgets


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "out of memory. Try --lowvram or a smaller --rank.",
            'out of memory. Try preset "low VRAM" or a smaller rank.',
        ),
        ("--skip-bad-images: 2 images", "skip_bad_images: 2 images"),
        ("--base: no such file", "checkpoint: no such file"),
        ("--n-contaminate: too many", "n_contaminate: too many"),
        ("a --word that no widget has", "a --word that no widget has"),
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
