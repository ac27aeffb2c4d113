"""Files beside a LoRA: as the hub, A1111 and managers read them."""

import json

from huggingface_hub import ModelCard
from PIL import Image

from trainer.reporting import sidecars

CARD = {
    "name": "mine",
    "answer": "99.5 % of pictures are normal now; 51 % before.",
    "warnings": ["Too weak."],
    "facts": [("steps", "600"), ("prior", "0.2")],
    "rows": [("before", "51 %", "44 % to 58 %", 200), ("after", "99.5 %", "97 % to 100 %", 200)],
    "usage": [("A1111, Forge", "write <lora:mine:1> into the prompt")],
    "advice": "Whoever can remove the LoRA can undo the unlearning.",
    "settings": 'rank = 4\nprior = 0.2\nprompt = "```"\n',
}


def test_the_hub_reads_the_card_and_its_figures(tmp_path):
    sidecars.write_card(tmp_path / "mine.md", base="org/model", rates={"before": 0.51, "after": 0.995}, **CARD)
    card = ModelCard.load(tmp_path / "mine.md")
    assert card.data.base_model == "org/model"
    assert [(found.metric_name, found.metric_value) for found in card.data.eval_results] == [
        ("non-sensitive rate before", 0.51),
        ("non-sensitive rate after", 0.995),
    ]
    assert "99.5 % of pictures are normal now" in card.text
    assert "| steps | 600 |\n| prior | 0.2 |\n" in card.text
    assert "| before | 51 % | 44 % to 58 % | 200 |\n| after | 99.5 %" in card.text
    assert "`<lora:mine:1>`" in card.text
    assert "    rank = 4\n    prior = 0.2\n" in card.text


def test_a_card_without_figures_or_a_public_base(tmp_path):
    sidecars.write_card(
        tmp_path / "mine.md", base="model.safetensors", rates={}, **{**CARD, "rows": [], "warnings": []}
    )
    card = ModelCard.load(tmp_path / "mine.md")
    assert card.data.base_model is None
    assert card.data.eval_results is None
    assert "Figures" not in card.text


def test_notes_as_a1111_reads_them(tmp_path):
    sidecars.write_notes(tmp_path / "mine.json", "Küste")
    found = json.loads((tmp_path / "mine.json").read_text(encoding="utf-8"))
    assert (found["sd version"], found["preferred weight"], found["activation text"]) == ("SD1", 1.0, "")
    assert found["description"] == "Küste"


def test_the_preview_shows_the_first_four_pictures(tmp_path):
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90), (1, 2, 3)]
    pictures = [Image.new("RGB", (64, 64), colour) for colour in colours]
    for n, wanted in ((5, colours[:4]), (2, [colours[0]] * 4)):
        sidecars.write_preview(tmp_path / "x.png", pictures[:n])
        with Image.open(tmp_path / "x.png") as found:
            assert found.size == (512, 512)
            assert [found.getpixel((x, y)) for y in (100, 400) for x in (100, 400)] == wanted
