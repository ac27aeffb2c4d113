"""The built-in default: data, miniature model and classifier are what the README says."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.builtin import CLASSIFIER, HERE, MODEL, classifier, digits
from trainer.generation.generate import PictureSettings, generate_pictures
from trainer.metrics.digit_judge import DigitJudge
from trainer.models import base_model, pipeline

PARTS = {"model": 3500, "folders": 500, "held_out": 1000}


def test_parts():
    found = {part: digits.load(part) for part in PARTS}
    assert {part: len(d.labels) for part, d in found.items()} == PARTS
    labels = found["folders"].labels
    assert (int((labels % 2 == 0).sum()), int((labels % 2 == 1).sum())) == (320, 180)
    assert np.bincount(found["held_out"].labels).tolist() == [100] * 10
    every = np.concatenate([d.images for d in found.values()])
    assert len(np.unique(every.reshape(len(every), -1), axis=0)) == 5000  # no digit in two parts


@pytest.mark.parametrize(("n_unlabeled", "n_sensitive"), [(400, 100), (80, 20)])
def test_folders(n_unlabeled, n_sensitive):
    mixture, labeled = digits.choose(n_unlabeled, n_sensitive)
    assert (len(mixture.labels), len(labeled.labels)) == (n_unlabeled, n_sensitive)
    assert digits.is_sensitive(mixture.labels).mean() == 0.2
    assert digits.is_sensitive(labeled.labels).all()
    every = np.concatenate([mixture.images, labeled.images])
    assert len(np.unique(every.reshape(len(every), -1), axis=0)) == n_unlabeled + n_sensitive
    clean, _ = digits.choose(n_unlabeled, n_sensitive, normal_only=True)
    assert not digits.is_sensitive(clean.labels).any()
    assert np.bincount(labeled.labels, minlength=10)[1::2].std() == 0


def test_more_digits_than_there_are():
    with pytest.raises(ValueError, match="there are 320 even and 180 odd"):
        digits.choose(500, 20)


def test_folders_on_disk(tmp_path):
    folders = digits.write_folders(tmp_path, 10, 5)
    images = {kind: sorted(folder.glob("*.png")) for kind, folder in folders.items()}
    assert {kind: len(found) for kind, found in images.items()} == {
        "unlabeled": 10,
        "sensitive": 5,
        "sensitive_captioned": 5,
    }
    assert Image.open(images["unlabeled"][0]).size == (64, 64)
    assert not list(folders["unlabeled"].glob("*.txt"))
    words = {path.read_text() for path in folders["sensitive_captioned"].glob("*.txt")}
    assert words == {f"a photo of the digit {n}" for n in ("one", "three", "five", "seven", "nine")}


def test_size():
    files = [f for f in [*MODEL.rglob("*"), CLASSIFIER, digits.FILE] if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 12 * 2**20
    assert HERE / "LICENSES.md" in HERE.iterdir()


def test_tokenizer_is_clips():
    tokenizer, encoder = base_model.load_text_encoder(base_model.Base(MODEL), torch.float32)
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    # the ids that OpenAI's CLIP gives to this prompt
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert type(encoder).__name__ == "CLIPTextModel"


def test_classifier_accuracy():
    held_out = digits.load("held_out")
    found, features = classifier.classify(classifier.load(), torch.from_numpy(digits.render(held_out.images)))
    assert features.shape == (1000, 64)
    assert (found.numpy() % 2 == held_out.labels % 2).mean() >= 0.99


def make(prompt, n, guidance=1.0):
    pipe = pipeline.load_pipeline(base_model.Base(MODEL))
    return generate_pictures(pipe, prompt, range(n), PictureSettings(64, 25, guidance))


@pytest.mark.long
def test_the_base_model_makes_all_ten_digits():
    rate = DigitJudge().rate(make(digits.PROMPT, 200))
    assert 0.4 <= rate.share <= 0.7
    assert min(rate.per_class.values()) >= 6, rate.per_class  # 3 % of 200; even shares would be 20


@pytest.mark.long
@pytest.mark.parametrize("digit", [3, 4])
def test_the_base_model_follows_a_prompt(digit):
    rate = DigitJudge().rate(make(digits.own_prompt(digit), 30, guidance=3.0))
    assert rate.per_class[digits.NAMES[digit]] >= 27
