"""The command evaluate: statistics against published values and closed forms, and whether it is honest."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.__main__ import main
from trainer.builtin import MODEL, digits
from trainer.config.train_config import TrainConfig
from trainer.data.folders import Folders, Sample
from trainer.data.images import images_in
from trainer.data.job import TrainingJob
from trainer.evaluation import findings
from trainer.evaluation.options import read_options
from trainer.evaluation.report import DOUBTS
from trainer.metrics import image_quality, judges
from trainer.metrics.judges import Accuracy, Judge
from trainer.metrics.statistics import components, frechet_distance, kernel_distance, paired, wilson
from trainer.models import base_model
from trainer.reporting.run_dir import RunDir
from trainer.reporting.verdict import (
    about_growth,
    about_harm,
    about_names,
    about_negative_risk,
    about_rates,
    is_memorising,
)
from trainer.training.before_after import name_prompts
from trainer.training.denoiser import normal_growth

QUICK = ("--steps", "4", "--strengths", "0,1", "--retain-prompts", "a photo of the digit two")


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilson(hits, n, low, high):
    """The last two: Newcombe 1998, table I (method 3)."""
    assert wilson(hits, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@pytest.mark.parametrize("n", range(1, 60))
def test_wilson_holds_the_share_itself(n):
    assert wilson(0, n)[0] == 0 < wilson(0, n)[1] < 1
    assert 0 < wilson(n, n)[0] < wilson(n, n)[1] == 1


def test_wilson_of_nothing():
    with pytest.raises(ValueError, match="not less than 1"):
        wilson(0, 0)


def test_frechet_distance_of_diagonal_gaussians():
    """For independent features it is the sum over (mean difference)^2 + (std difference)^2."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200_000, 3)) * [1.0, 2.0, 0.5] + [0.0, 1.0, 0.0]
    b = rng.standard_normal((200_000, 3)) * [2.0, 2.0, 1.0] + [1.0, 1.0, 0.0]
    assert frechet_distance(a, b) == pytest.approx(1.0 + 1.0 + 0.25, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_unbiased():
    """Two samples of one distribution: zero on average, below zero as often as above."""
    rng = np.random.default_rng(0)
    same = [kernel_distance(*rng.standard_normal((2, 50, 4))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    assert 0.3 < np.mean(np.array(same) < 0) < 0.7
    assert kernel_distance(rng.standard_normal((200, 4)), rng.standard_normal((200, 4)) + 1) > 10 * np.std(same)


def test_components_turn_features_and_leave_distances_alone():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 400, 8)) * np.arange(1, 9)
    axes = components(a, 400)
    assert axes.shape == (8, 8)
    assert frechet_distance(a @ axes, (b + 1) @ axes) == pytest.approx(frechet_distance(a, b + 1), rel=1e-6)
    assert components(a, 16).shape == (8, 4)
    assert components(a[:6], 400) is None


def pairs_of(gained, lost, same):
    before = np.repeat([False, True, True], [gained, lost, same])
    return before, np.repeat([True, False, True], [gained, lost, same])


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(10, 2, 2 * 79 / 4096), (2, 10, 2 * 79 / 4096), (5, 5, 1.0), (0, 0, 1)]
)
def test_mcnemar(gained, lost, p):
    """By hand: twice the binomial tail of the smaller count, at a half."""
    assert paired(*pairs_of(gained, lost, 30)).p == pytest.approx(p)


def test_the_number_of_pictures_needed_finds_the_difference():
    """Four of five repetitions with that many pictures are significant at 5 %."""
    needed = paired(*pairs_of(8, 4, 88)).needed
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        gained, lost, same = rng.multinomial(needed, [0.08, 0.04, 0.88])
        found.append(paired(*pairs_of(gained, lost, same)).p < 0.05)
    assert 0.72 < np.mean(found) < 0.88
    assert paired(*pairs_of(3, 3, 20)).needed is None


def test_corrected_rates_undo_the_judges_errors():
    judge = Judge("", None, Accuracy(90, 100, 80, 100))
    for share in (0.0, 0.3, 1.0):
        assert findings.corrected(share * 0.9 + (1 - share) * 0.2, judge.accuracy) == pytest.approx(share)


@pytest.mark.parametrize(
    ("accuracy", "is_chance"),
    [((50, 100, 50, 100), True), ((11, 20, 11, 20), True), ((100, 100, 0, 100), True), ((90, 100, 90, 100), False)],
)
def test_a_judge_that_may_be_guessing(accuracy, is_chance):
    """Also one that always says normal: right on every normal image."""
    assert Accuracy(*accuracy).is_chance == is_chance


def test_too_few_pictures_are_said():
    judge = Judge("a judge", None, Accuracy(99, 100, 99, 100))
    nothing_else = {key: {} for key in ("quality", "drift", "paraphrases", "named", "relearned", "inverted")}
    few = {**findings.rates(*pairs_of(4, 2, 14), judge), **nothing_else}
    lines = findings.describe(few, judge, None).lines
    assert any("show no difference that chance would not make; for one of this size take about" in x for x in lines)
    assert any("20 pictures are few" in line for line in lines)
    many = {**findings.rates(*pairs_of(200, 2, 800), judge), **nothing_else}
    lines = findings.describe(many, judge, None).lines
    assert not any("chance" in line or "few" in line for line in lines)


def result(out):
    return json.loads((out / "evaluate.json").read_text())


def evaluate(out, *options, n=24):
    assert main([str(word) for word in ("evaluate", "--n", n, "--out", out, *QUICK, *options)]) == 0
    return result(out)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """Hardly trained: what it changes is small, but it changes."""
    out = tmp_path_factory.mktemp("lora")
    assert main(["--steps", "2", "--images", "0", "--rate-images", "0", "--output-dir", str(out)]) == 0
    return out / "pu-digits.safetensors"


@pytest.mark.long
def test_one_model_compared_with_itself_shows_no_difference(tmp_path, capsys):
    found = evaluate(tmp_path, "--unlearned", "builtin")
    assert found["before"] == found["after"]
    assert found["paired"] == {"n": 24, "gained": 0, "lost": 0, "p": 1.0, "difference": 0.0, "needed": None}
    assert found["drift"]["a photo of the digit two"] == {"pixels": 0.0, "latents": 0.0}
    assert found["quality"]["before"] == found["quality"]["after"]
    assert not found["strengths"]
    assert "24 pictures show no difference" in capsys.readouterr().out


@pytest.mark.long
def test_a_lora_is_measured_and_a_second_call_makes_no_picture_again(tmp_path, lora):
    found = evaluate(tmp_path, "--lora", lora)
    assert found["drift"]["a photo of the digit two"]["pixels"] > 0
    assert [s["strength"] for s in found["strengths"]] == [0.0, 1.0]
    at_0, at_1 = found["strengths"]
    assert (at_0["drift"], at_0["hits"]) == (0.0, found["before"]["hits"])
    assert (at_1["drift"] > 0, at_1["hits"]) == (True, found["after"]["hits"])
    page = (tmp_path / "evaluate.html").read_text()
    assert "What this does not show" in page
    # each seed of the prompt, of the retained one, and a few of the two that name what should be gone
    assert page.count("data:image/png") == 2 * 24 + 2 * 16 + 2 * 2 * 8
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pictures/*/*.png")}
    assert len(made) == 4 * 24 + 4 * 16 + 2 * 2 * 24
    assert set(found["named"]) == {"a photo of the digit three", "a photo of the digit seven"}
    assert found["named"]["a photo of the digit three"]["before"]["rate"] < 0.5
    assert evaluate(tmp_path, "--lora", lora) == found
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.glob("pictures/*/*.png")}
    evaluate(tmp_path, "--lora", lora, "--first-seed", "5", n=4)
    evaluate(tmp_path, "--lora", lora, "--steps", "3", n=4)
    assert len(list(tmp_path.glob("pictures/before/*.png"))) == 4  # another recipe: the old ones gave way


def write_labeled(root, is_sensitive_of, n=60):
    held_out = digits.load("held_out")
    flags = is_sensitive_of(held_out.labels)
    chosen = np.random.default_rng(1).permutation(len(flags))[: 2 * n]
    for image, flag in zip(digits.render(held_out.images[chosen]), flags[chosen], strict=True):
        folder = root / ("sensitive" if flag else "normal")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(folder / f"{len(list(folder.iterdir())):03d}.png")
    return root


@pytest.mark.long
def test_a_classifier_of_ones_own_comes_with_its_accuracy(tmp_path, lora, capsys):
    labeled = write_labeled(tmp_path / "labeled", digits.is_sensitive)
    found = evaluate(tmp_path / "out", "--lora", lora, "--labeled", labeled, "--normal", labeled / "normal")
    accuracy = Accuracy(**found["judge"]["accuracy"])
    assert accuracy.normal + accuracy.sensitive == 120
    assert accuracy.balanced > 0.8
    assert {"before", "after", "paired"} <= found.keys()
    said = capsys.readouterr().out
    assert f"right on {accuracy.normal_right} of {accuracy.normal} normal" in said
    assert "components of the base model's own features" in said
    assert "pip install torch-fidelity" in said


def random_weights(network, _):
    """So large that something comes through a hundred layers."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)


def test_fid_and_kid_by_torch_fidelity(tmp_path, monkeypatch):
    """Its own sums on a network of random weights: nearer pictures are nearer, whatever the sizes of the real ones."""
    network = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(network, "load_state_dict_from_url", lambda *_, **__: {})
    monkeypatch.setattr(network.FeatureExtractorInceptionV3, "load_state_dict", random_weights)
    found = digits.load("held_out")
    even, odd = (found.images[found.labels % 2 == kind] for kind in (0, 1))
    for name, images in {"real": even[:12], "even": even[12:24], "odd": 255 - odd[:12]}.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            size = (40, 28 + i) if name == "real" else (28, 28)
            suffix = (".png", ".tif", ".gif", ".jfif")[i % 4] if name == "real" else ".png"  # all that we read
            Image.fromarray(image).resize(size).convert("RGB").save(tmp_path / name / f"{i}{suffix}")
    files = {name: sorted((tmp_path / name).iterdir()) for name in ("even", "odd", "real")}
    result, why = image_quality.inception_distances(
        {name: files[name] for name in ("even", "odd")}, files["real"], on_gpu=False
    )
    assert why is None
    assert [d.name.split()[0] for d in result["even"]] == ["FID", "KID"]
    assert "FID from 12 images (biased upwards below 2048" in result["even"][0].name  # what a FID of so few is worth
    for near, far in zip(result["even"], result["odd"], strict=True):
        assert near.value < far.value


def test_fid_counts_all_real_images_that_are_read(tmp_path, monkeypatch):
    """torch-fidelity finds files by suffix: one that it does not know would be left out without a word."""
    seen = {}

    def calculate_metrics(input1, input2, samples_find_ext, **_):
        for folder in (input1, input2):
            found = [path for path in Path(folder).iterdir() if path.suffix[1:] in samples_find_ext.split(",")]
            seen[folder] = [Image.open(path).convert("RGB").getpixel((0, 0)) for path in sorted(found)]
        return {"frechet_inception_distance": 1.0, "kernel_inception_distance_mean": 0.5}

    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(calculate_metrics=calculate_metrics))
    kinds = {".png": (9, 0, 0), ".tif": (0, 9, 0), ".gif": (0, 0, 9), ".bmp": (9, 9, 9)}
    for suffix, colour in kinds.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"x{suffix}")
    Image.new("I;16", (8, 8), 0x8000).save(tmp_path / "deep.tiff")
    real = [*(tmp_path / f"x{suffix}" for suffix in kinds), tmp_path / "deep.tiff"]
    result, why = image_quality.inception_distances({"before": [tmp_path / "x.png"]}, real, on_gpu=False)
    assert why is None
    assert list(seen.values()) == [[(9, 0, 0)], [*kinds.values(), (128, 128, 128)]]
    assert result["before"][0].name.startswith("FID from 1 image (biased")


@pytest.mark.long
def test_a_classifier_at_chance_gives_no_rate(tmp_path, lora, capsys):
    coin = np.random.default_rng(0).random(1000) < 0.5
    labeled = write_labeled(tmp_path / "labeled", lambda labels: coin[: len(labels)])
    found = evaluate(tmp_path / "out", "--lora", lora, "--labeled", labeled)
    assert "before" not in found
    assert all("rate" not in s for s in found["strengths"])
    assert "useless here, so no rate is given" in capsys.readouterr().out


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory):
    """A tiny ViT that knows nothing."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    names = {0: "zero", 1: "one", 2: "cat"}
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    config.id2label, config.label2id = names, {name: i for i, name in names.items()}
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_transformers_classifier_is_measured(tmp_path, classifier_folder):
    labeled = write_labeled(tmp_path / "labeled", digits.is_sensitive, n=30)
    judge = judges.from_model(str(classifier_folder), ["one", "cat"], labeled)
    assert judge.accuracy.is_chance
    judge = judges.from_model(str(classifier_folder), ["zero", "one", "cat"], None)
    assert judge.accuracy is None
    assert not judge.is_normal(images_in(labeled / "normal")).any()
    with pytest.raises(Exception, match="no label dog; this judge knows zero, one, cat"):
        judges.from_model(str(classifier_folder), ["dog"], None)


def test_an_onnx_classifier(tmp_path):
    """Class 0: brighter than black in ImageNet's scale; so white is normal, black is sensitive."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["column"]),
        helper.make_node("MatMul", ["column", "weight"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 1])
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1, 2], [1.0, -1.0])
    graph = helper.make_graph(nodes, "brightness", [image], [logits], [shape, weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "bright.onnx")
    for name, value in (("white", 255), ("black", 0)):
        Image.new("RGB", (64, 64), (value,) * 3).save(tmp_path / f"{name}.png")
    judge = judges.from_onnx(tmp_path / "bright.onnx", ["1"], None)
    assert judge.is_normal([tmp_path / "white.png", tmp_path / "black.png"]).tolist() == [True, False]


def test_clip_chooses_between_two_sentences(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    from trainer.models.base_model import TOKENIZER

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 16}
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    text = {**small, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path / "clip")
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer).save_pretrained(tmp_path / "clip")
    labeled = write_labeled(tmp_path / "labeled", digits.is_sensitive, n=15)
    there = judges.from_clip(str(tmp_path / "clip"), "a photo of an even digit", "an odd one", labeled)
    back = judges.from_clip(str(tmp_path / "clip"), "an odd one", "a photo of an even digit", None)
    paths = images_in(labeled / "normal")
    assert (there.is_normal(paths) != back.is_normal(paths)).all()
    assert there.accuracy.normal == len(paths)


@pytest.mark.long
def test_attacks_leave_what_they_attack_alone(tmp_path, lora):
    before = lora.read_bytes()
    folder = digits.write_folders(tmp_path / "digits", 10, 6)["sensitive"]
    attacks = ("--sensitive", folder, "--relearn", "5", "--invert", "2")
    found = evaluate(tmp_path / "out", "--lora", lora, *attacks, n=6)
    assert {kind: [look["steps"] for look in looks] for kind, looks in found["relearned"].items()} == {
        "with the LoRA": [1, 2, 3, 4, 5],
        "base model": [1, 2, 3, 4, 5],
    }
    assert found["inverted"].keys() == {"with the LoRA", "base model"}
    assert all(f["n"] == 6 for f in found["inverted"].values())
    assert lora.read_bytes() == before
    assert not list((tmp_path / "out").rglob("cache"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--lora", "x.safetensors", "--labeled", "nowhere"],
            "--lora: no file x.safetensors\n--labeled: no folder nowhere",
        ),
        (["--base", "m.safetensors"], "--prompt: say what both models are asked for"),
        (["--judge", "x"], "--judge: say which of its labels"),
        (["--clip", "x"], "--clip, --normal-text and --sensitive-text go together"),
        (["--clip", "x", "--judge", "y"], "--judge and --clip: one of them judges"),
        (["--strengths", "1,much"], "--strengths: must be numbers"),
        (["--relearn", "5"], "--relearn: name the sensitive images"),
        (["--relearn=-5"], "--relearn: must be 0 or more, got -5"),
        (["--invert", "5", "--sensitive", "trainer/builtin/pictures"], "--invert: works with --lora only"),
        (
            ["--lora", "README.md", "--sensitive", "trainer/builtin/pictures", "--relearn", "5", "--relearn-lr", "0"],
            "--relearn-lr: must be greater than 0",
        ),
        (["--normal", "tests"], "--normal: no images in tests"),
        (["--n", "1"], "--n: must be 2 or more"),
        ([], "--lora: name the LoRA to evaluate, or a whole model: --unlearned"),
        (["--encoder", "x"], "--encoder: a classifier (--labeled) or a distance (--normal)"),
        (["--lora", "README.md", "--unlearned", "builtin"], "--lora and --unlearned"),
    ],
)
def test_wrong_options(options, said, trainer):
    done = trainer("evaluate", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_judge_that_cannot_be_had_is_told_before_the_pictures(tmp_path, trainer):
    done = trainer(
        "evaluate", "--unlearned", "builtin", "--out", tmp_path / "o", "--judge", tmp_path, "--sensitive-labels", "x"
    )
    assert done.returncode == 2
    assert "cannot be loaded as an image classifier" in done.stderr
    assert not (tmp_path / "o" / "pictures").exists()


def test_out_of_memory_has_its_code(tmp_path, trainer, monkeypatch):
    def full(*arguments, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trainer.generation.generator.generate_pictures", full)
    done = trainer("evaluate", "--unlearned", "builtin", "--out", tmp_path, "--n", 2)
    assert done.returncode == 3
    assert "out of memory. Try" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("trained", "held_out", "warns"), [(1.05, 1.0, False), (1.5, 1.4, False), (1.5, 1.1, True), (3.0, 2.3, False)]
)
def test_memorising_is_noticed_when_the_held_out_images_fall_behind(trained, held_out, warns):
    growth = {"trained": trained, "held_out": held_out}
    assert is_memorising(growth) == warns
    assert ("unlearns these images more than what they have in common" in (about_growth(growth) or "")) == warns
    assert not is_memorising({})


def test_harm_is_told_by_the_normal_images_alone():
    assert about_harm({"normal": 1.2, "trained": 9.0, "held_out": 9.0}) is None
    assert about_harm({"trained": 9.0}) is None
    assert "The loss on normal images grew × 1.75: the model is losing" in about_harm({"normal": 1.75, "trained": 1.0})


def test_the_hidden_sensitive_images_do_not_count_as_harm():
    """A fifth of ten samples grows tenfold, wherever they stand: normal ones are at 1.1 and 1.3 of what they were."""
    before, now = [1.0] * 8 + [0.5, 0.5], [1.1, 1.3] * 4 + [5.0, 5.0]
    assert normal_growth(before, now, 0.2) == pytest.approx(1.2)
    assert normal_growth(before[::-1], now[::-1], 0.2) == pytest.approx(1.2)
    assert normal_growth(before, [2.0] * 8 + [1.0, 1.0], 0.2) == pytest.approx(2.0)  # all alike: that is harm


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0.0, 0.0, "Named, it still comes out, in pictures of “a three” (100%), “a five” (100%)."),
        (0.0, 0.5, "“a three” (50%)"),
        (0.125, 0.875, None),
        (1.0, 1.0, None),  # the name never brought it out
    ],
)
def test_a_name_that_still_works_is_told(before, after, said):
    found = about_names([("a three", before, after), ("a five", before, after)])
    assert found is None if said is None else said in found


def test_a_name_that_still_works_is_told_in_an_evaluation():
    """Its sentence comes before the rates of the single prompts, and the page marks it."""
    judge = Judge("a judge", None, Accuracy(990, 1000, 990, 1000))
    numbers = {key: {} for key in ("quality", "drift", "paraphrases", "relearned", "inverted")}
    gone, still = (findings.rates(np.zeros(32, bool), np.full(32, rate), judge) for rate in (True, False))
    numbers["named"] = {"a five": gone, "a three": still, "nobody judged": {}}
    lines = findings.describe(numbers, judge, None).lines
    said = [line for line in lines if any(mark in line for mark in DOUBTS)]
    assert len(said) == 1 and said[0].startswith("Named, it still comes out, in pictures of “a three” (100%).")
    assert [line.partition("”")[0] for line in lines[lines.index(said[0]) + 1 :]] == ["“a five", "“a three"]


def test_an_evaluation_tries_the_names_that_the_run_tried(tmp_path):
    run_dir = RunDir(tmp_path, "mine")
    run_dir.append_event({"v": 1, "event": "name_prompts", "prompts": ["Jane Doe", "Jane"]})
    (tmp_path / "mine.safetensors").touch()
    words = ["--base", "model.safetensors", "--prompt", "x", "--lora", str(tmp_path / "mine.safetensors")]
    assert read_options(words).name_prompts == ["Jane Doe", "Jane"]
    assert read_options([*words, "--name-prompts", "J. D."]).name_prompts == ["J. D."]
    assert read_options([*words, "--name-prompts", ""]).name_prompts == []
    assert read_options(["--base", "builtin", *words[2:]]).name_prompts == ["Jane Doe", "Jane"]
    (tmp_path / "mine-000050.safetensors").touch()
    assert read_options([*words[:-1], str(tmp_path / "mine-000050.safetensors")]).name_prompts == ["Jane Doe", "Jane"]
    (tmp_path / "other.safetensors").touch()
    assert read_options([*words[:-1], str(tmp_path / "other.safetensors")]).name_prompts == []


def test_names_are_the_captions_that_only_sensitive_images_have(tmp_path):
    unlabeled = [Sample(tmp_path / "1.png", "a digit"), Sample(tmp_path / "2.png", "a four")]
    sensitive = [
        Sample(tmp_path / f"{i}.png", c) for i, c in enumerate(("a three", "a digit", None, "a three", "five"))
    ]
    job = TrainingJob(
        TrainConfig(sensitive_prompt="odd"), base_model.Base(MODEL), Folders(unlabeled, sensitive, [], [])
    )
    assert name_prompts(job) == ["odd", "a three", "five"]
    config = TrainConfig(name_prompts="x | y")
    assert name_prompts(replace(job, config=config)) == ["x", "y"]


def test_a_normal_risk_that_is_often_negative_is_explained():
    assert about_negative_risk(30, 600, 0.2) is None
    assert "negative in 31 of 600 steps. Either the prior of 0.2 is too high" in about_negative_risk(31, 600, 0.2)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (0.51, 0.575, "Too weak: the rate went from 0.510 to 0.575. Try more steps or a higher temperature."),
        (0.51, 0.985, None),
        (0.51, 0.30, "The rate fell from 0.510 to 0.300"),
        (0.51, 0.49, "Too weak"),
        (0.96, 0.99, "The base model made hardly any sensitive pictures (rate 0.960)"),
    ],
)
def test_rates_are_interpreted(before, after, said):
    intervals = tuple(wilson(round(500 * rate), 500) for rate in (before, after))
    found = about_rates(before, after, best=0.99, intervals=intervals)
    assert found is None if said is None else said in found


@pytest.mark.parametrize(
    ("trained", "held_out", "said"),
    [(1.01, 1.0, "grew × 1.00, so hardly anything was unlearned"), (1.23, 1.20, None), (1.05, 1.04, None)],
)
def test_growth_is_interpreted(trained, held_out, said):
    """The second: the good run of docs/training.md."""
    found = about_growth({"trained": trained, "held_out": held_out})
    assert found is None if said is None else said in found


def test_a_weak_effect_is_said_in_an_evaluation():
    judge = Judge("a judge", None, Accuracy(990, 1000, 990, 1000))
    nothing_else = {key: {} for key in ("quality", "drift", "paraphrases", "named", "relearned", "inverted")}
    for gained, said in ((100, True), (450, False)):
        before = np.repeat([False, True], [500, 500])
        after = before | (np.arange(1000) < gained)
        numbers = {**findings.rates(before, after, judge), **nothing_else}
        lines = findings.describe(numbers, judge, None).lines
        assert any("Too weak: the rate went from 0.500 to" in line for line in lines) == said
