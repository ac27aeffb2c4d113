"""Labels and tooltips in ComfyUI's languages: locales/<language>/nodeDefs.json, which ComfyUI merges at start.

English is what the nodes' schemas say; phrases.json has each English phrase in the other languages, so that a phrase
that changes falls back to English until it is translated again. After a change:

    WRITE_LOCALES=1 python -m pytest tests/pu_node/test_locales.py
"""

import json
import os
from pathlib import Path

import pytest
from comfy_stub import comfy
from make_workflows import OURS

__all__ = ["comfy"]
ROOT = Path(__file__).parents[2]
PHRASES = json.loads(Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))
LANGUAGES = ("zh", "ja", "ko")


def english(schema):
    """The words of one node, as ComfyUI's page looks for them."""
    words = {"display_name": schema.display_name, "description": schema.description}
    inputs = {p.id: {"name": p.display_name or p.id, "tooltip": p.more.get("tooltip")} for p in schema.inputs}
    outputs = [{"name": p.display_name or p.id, "tooltip": p.more.get("tooltip")} for p in schema.outputs]
    return {**words, "inputs": inputs, "outputs": {str(i): found for i, found in enumerate(outputs)}}


def phrases(found):
    """Every text below, in order."""
    if isinstance(found, dict):
        return [text for value in found.values() for text in phrases(value)]
    return [found]


def each(found, change):
    """The same keys with changed texts."""
    if isinstance(found, dict):
        return {key: each(value, change) for key, value in found.items()}
    return change(found)


def translation(index):
    """From English into a language; English again where a phrase has no translation."""
    return lambda text: PHRASES.get(text, [text] * len(LANGUAGES))[index]


@pytest.fixture
def nodes(comfy):
    return {name: english(comfy.schema(name)) for name in sorted(OURS)}


def files(nodes):
    found = {
        "en": each(nodes, lambda text: text.replace("|", "a vertical bar")),
        **{name: each(nodes, translation(i)) for i, name in enumerate(LANGUAGES)},
    }
    return {
        ROOT / "locales" / name / "nodeDefs.json": json.dumps(words, indent=1, ensure_ascii=False) + "\n"
        for name, words in found.items()
    }


def test_the_files_follow_the_schemas_and_the_phrases(nodes):
    for path, text in files(nodes).items():
        if os.environ.get("WRITE_LOCALES"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text, "write them again: see the head of this file"
    assert {path.parent.name for path in (ROOT / "locales").glob("*/*")} == {"en", *LANGUAGES}


def test_every_input_and_output_has_words(nodes):
    assert [name for name in nodes if not all(phrases(nodes[name]))] == []


def test_every_phrase_is_translated_and_none_is_left_over(nodes):
    used = {text for node in nodes.values() for text in phrases(node)}
    assert sorted(used - set(PHRASES)) == []
    assert sorted(set(PHRASES) - used) == []
    for phrase, found in PHRASES.items():
        assert len(found) == len(LANGUAGES) and all(found), phrase


def test_a_translation_keeps_what_is_typed_and_chosen():
    for phrase, found in PHRASES.items():
        for mark in ("ComfyUI/input", ".txt", "LoraLoader", "LoRA", "VAE", "CLIP", "adamw8bit", "20 ", "-1"):
            assert mark.strip() not in phrase or all(mark.strip() in text for text in found), phrase


def test_no_text_has_a_mark_that_the_page_reads(nodes):
    """To vue-i18n a | separates plurals; some versions of the page unescape it in labels only, not in tooltips."""
    for text in files(nodes).values():
        assert not set("@|{}") & set("".join(phrases(json.loads(text))))
