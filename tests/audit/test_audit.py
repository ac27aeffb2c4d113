"""`audit` and `prior` on the built-in digits, where the truth is known."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score

from trainer.__main__ import main
from trainer.audit import command, moving
from trainer.audit.duplicates import near_duplicates
from trainer.audit.features import Images, encoder_features, unet_features
from trainer.audit.groups import group
from trainer.audit.ranking import Ranking
from trainer.builtin import MODEL, classifier, digits
from trainer.data.folders import Sample
from trainer.data.latent_cache import LatentCache
from trainer.memory.memory_plan import MemoryPlan
from trainer.models import base_model
from trainer.objective import class_prior
from trainer.objective.class_prior import Prior


def digit_of(paths):
    images = np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])
    return classifier.classify(classifier.load(), torch.from_numpy(images))[0].numpy()


def is_odd(paths):
    return digits.is_sensitive(digit_of(paths))


def images(samples, cache):
    latents = LatentCache(base_model.Base(MODEL), cache, 64, bucket=True, device=torch.device("cpu"))
    return Images(latents, samples, MemoryPlan("fp32", "fp32"), lambda *_: None)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The built-in default: 400 unlabeled with 80 odd digits hidden, 100 odd ones labeled."""
    folder = tmp_path_factory.mktemp("audit")
    assert main(["audit", "--output-dir", str(folder), "--keep-cache"]) == 0
    return folder


def test_what_is_hidden_comes_first(audited):
    rows = list(csv.DictReader((audited / "pu-digits-audit" / "audit.csv").open(encoding="utf-8")))
    assert len(rows) == 400
    assert [float(r["score"]) for r in rows] == sorted((float(r["score"]) for r in rows), reverse=True)
    truth, scores = is_odd([r["image"] for r in rows]), [float(r["score"]) for r in rows]
    assert average_precision_score(truth, scores) >= 0.8
    assert "Most probably sensitive" in (audited / "pu-digits-audit" / "audit.html").read_text(encoding="utf-8")
    with Image.open(audited / "pu-digits-audit" / "audit.png") as sheet:
        assert sheet.width > 500


def test_shuffled_labels_find_nothing(audited):
    """The same code on labels that mean nothing: chance is the share of odd digits, 0.2."""
    folders = [sorted((audited / "digits" / kind).glob("*.png")) for kind in ("unlabeled", "sensitive")]
    samples = [Sample(path, None) for pile in folders for path in pile]
    values = unet_features(images(samples, audited / "pu-digits-audit" / "cache"))
    labels = np.random.default_rng(0).permutation(np.arange(len(samples)) >= 400)
    truth = is_odd([s.path for s in samples])[~labels]
    scores = class_prior.cross_fit(values, labels, seed=0)[~labels]
    assert average_precision_score(truth, scores) < truth.mean() + 0.1


def test_groups_are_of_alike_images(audited):
    """Every image once; most groups are of one or two digits, though nothing told which is which."""
    found = json.loads((audited / "pu-digits-audit" / "audit.json").read_text(encoding="utf-8"))["groups"]
    names = [image for group in found for image in group["images"]]
    assert sorted(names) == sorted(str(path) for path in (audited / "digits" / "unlabeled").glob("*.png"))
    assert [g["score"] for g in found] == sorted((g["score"] for g in found), reverse=True)
    labels = [digit_of(group["images"]) for group in found]
    commonest = sum(np.bincount(group, minlength=10).max() for group in labels)
    assert commonest > 0.4 * len(names)  # by chance 0.17: 64 of 400 images are the commonest digit
    assert (audited / "pu-digits-audit" / "audit-groups.png").exists()


def test_few_images_are_one_group():
    assert set(group(np.random.default_rng(0).normal(size=(19, 5)), seed=0)) == {0}
    apart = np.repeat(np.eye(4) * 9, 10, axis=0) + np.random.default_rng(0).normal(size=(40, 4))
    assert [len(set(part)) for part in group(apart, seed=0).reshape(4, 10)] == [1, 1, 1, 1]


def test_prior_is_near_the_truth_and_said_with_its_interval(audited):
    found = json.loads((audited / "pu-digits-audit" / "audit.json").read_text(encoding="utf-8"))["prior"]
    assert found["value"] == pytest.approx(0.2, abs=0.06)
    assert found["low"] <= 0.2 <= found["high"]


def test_few_images_say_a_wide_interval_and_why(digit_folders, tmp_path, capsys):
    words = ["prior", "--base", "builtin", "--resolution", "64", "--output-dir", str(tmp_path)]
    words += ["--unlabeled", str(digit_folders["unlabeled"]), "--sensitive", str(digit_folders["sensitive"])]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "10 unlabeled and 6 sensitive images are few" in said or "hardly tell sensitive from normal images" in said
    assert "it counts only what resembles the sensitive examples" in said
    assert not (tmp_path / "pu-lora-audit" / "cache").exists()  # latents of private images


@pytest.fixture
def folders(digit_folders, tmp_path):
    """Copies to move about; one sensitive image lies in the unlabeled folder, too, resized and as JPEG."""
    found = {k: shutil.copytree(digit_folders[k], tmp_path / k) for k in ("unlabeled", "sensitive")}
    first = min(found["sensitive"].glob("*.png"))
    Image.open(first).resize((96, 96)).convert("RGB").save(found["unlabeled"] / "copy.jpg", quality=85)
    (found["unlabeled"] / "copy.txt").write_text("a photo of a digit")
    return found, first


def audit(folders, tmp_path, *more):
    words = ["audit", "--base", "builtin", "--resolution", "64", "--output-dir", tmp_path / "out"]
    words += ["--unlabeled", folders["unlabeled"], "--sensitive", folders["sensitive"], *more]
    return main([str(w) for w in words])


def test_moving_is_a_dry_run_first(folders, tmp_path, capsys):
    folders, original = folders
    before = sorted(folders["unlabeled"].iterdir())
    assert audit(folders, tmp_path, "--top", 11, "--move-to", tmp_path / "aside") == 0
    said = capsys.readouterr().out
    assert f"{folders['unlabeled'] / 'copy.jpg'} = {original}" in said
    assert "would move 12 files" in said
    assert sorted(folders["unlabeled"].iterdir()) == before
    assert audit(folders, tmp_path, "--top", 3, "--move-to", tmp_path / "aside", "--apply") == 0
    moved = {p.name for p in (tmp_path / "aside").iterdir()} - {"moved-by-audit.json"}
    assert {p.name for p in before} == moved | {p.name for p in folders["unlabeled"].iterdir()}
    assert len([name for name in moved if not name.endswith(".txt")]) == 3


def test_a_caption_in_capitals_moves_with_its_image(folders, tmp_path):
    """As training reads it: CAT.TXT beside cat.png, on every system."""
    folders, _ = folders
    (folders["unlabeled"] / "copy.txt").rename(folders["unlabeled"] / "COPY.TXT")
    moving.move([folders["unlabeled"] / "copy.jpg"], folders["unlabeled"], tmp_path / "aside", apply=True)
    assert {path.name for path in (tmp_path / "aside").iterdir()} == {"copy.jpg", "COPY.TXT", moving.MANIFEST}


def test_the_first_can_be_left_out_of_training(folders, tmp_path, capsys):
    folders, _ = folders
    file = tmp_path / "exclude.txt"
    assert audit(folders, tmp_path, "--top", 4, "--exclude", file) == 0
    named = file.read_text(encoding="utf-8").splitlines()
    assert len(named) == 4
    assert f"train without them: --exclude {file}" in capsys.readouterr().out
    words = ["data", "--base", "builtin", "--prompt", "p", "--exclude", file]
    words += ["--unlabeled", folders["unlabeled"], "--sensitive", folders["sensitive"]]
    assert main([str(w) for w in words]) == 0
    said = capsys.readouterr().out
    assert "unlabeled: 7 images" in said
    assert all(f"skipped {path}: --exclude names it" in said for path in named)


def test_nothing_is_overwritten(folders, tmp_path, capsys):
    folders, _ = folders
    (tmp_path / "aside").mkdir()
    for path in folders["unlabeled"].iterdir():
        (tmp_path / "aside" / path.name).write_text("mine")
    assert audit(folders, tmp_path, "--top", 48, "--move-to", tmp_path / "aside", "--apply") == 2
    assert "nothing was moved" in capsys.readouterr().err


def test_too_few_images_need_the_number(folders, tmp_path, capsys):
    """Where the estimate tells nothing, the default of 48 would be all of them."""
    folders, _ = folders
    before = sorted(folders["unlabeled"].iterdir())
    for words in (["--move-to", tmp_path / "aside", "--apply"], ["--exclude", tmp_path / "names.txt"]):
        assert audit(folders, tmp_path, *words) == 2
        assert "--top: say how many images to move or exclude (the images are too few" in capsys.readouterr().err
    assert sorted(folders["unlabeled"].iterdir()) == before
    assert not (tmp_path / "names.txt").exists()
    assert (tmp_path / "out" / "pu-lora-audit" / "audit.png").exists()  # which the sentence names


@pytest.fixture
def telling(monkeypatch):
    """A ranking with an estimate whose upper end is 0.3: 3 of 11 images."""

    def rank(config, base, folders, options, cache, progress):
        n = len(folders.unlabeled)
        scores = np.arange(n)[::-1] / n
        return Ranking(folders.unlabeled, scores, np.array([0.3, 0.5, 0.6, 0.7]), Prior(0.2, 0.1, 0.3, 0.3, 0.95, n, 6))

    monkeypatch.setattr(command, "rank", rank)


@pytest.mark.parametrize(("words", "moved"), [([], 3), (["--top", 2], 2), (["--top", 5], 5)])
def test_no_more_than_the_estimate_is_moved_unless_said(words, moved, folders, tmp_path, telling, capsys):
    folders, _ = folders
    images = sorted(path for path in folders["unlabeled"].iterdir() if path.suffix != ".txt")
    assert len(images) == 11
    assert audit(folders, tmp_path, *words, "--move-to", tmp_path / "aside", "--apply") == 0
    gone = [path for path in images if not path.exists()]
    assert gone == images[:moved]
    said = capsys.readouterr().out
    assert ("5 images are more than the estimate's upper end, 3 of 11" in said) == (moved == 5)
    assert ("the first 3: the estimate's upper end is 3 of 11 images" in said) == (not words)


def test_keep_at_most_moves_what_the_examples_do_not_vouch_for(folders, tmp_path, telling, capsys):
    """Scores 10/11 … 0 and examples 0.3, 0.5, 0.6, 0.7: four images score below all examples, p = 1/5."""
    folders, _ = folders
    n = len([path for path in folders["unlabeled"].iterdir() if path.suffix != ".txt"])
    assert audit(folders, tmp_path, "--keep-at-most", 0.2, "--move-to", tmp_path / "aside", "--apply") == 0
    assert len(list((tmp_path / "aside").glob("*.png"))) == n - 4
    assert f"leaves out {n - 4} of {n} images: of the hidden sensitive images, at most 0.2" in capsys.readouterr().out
    assert audit(folders, tmp_path / "2", "--keep-at-most", 0.1, "--exclude", tmp_path / "names.txt") == 2
    assert "4 sensitive examples cannot promise less than 0.200" in capsys.readouterr().err


def test_undo_moves_everything_back(folders, tmp_path, telling, capsys):
    """Also after two moves to one folder, with captions, and however the manifest's folder is named."""
    folders, _ = folders
    content = lambda: {path: path.read_bytes() for path in folders["unlabeled"].rglob("*") if path.is_file()}  # noqa: E731
    before, aside = content(), tmp_path / "aside"
    for _ in range(2):
        assert audit(folders, tmp_path, "--top", 4, "--move-to", aside, "--apply") == 0
    assert len(content()) < len(before)
    assert f'audit --undo "{aside}"' in capsys.readouterr().out
    blocked = next(path for path in before if not path.exists())
    blocked.write_text("a new file of that name")
    assert main(["audit", "--undo", str(aside)]) == 2
    assert "nothing was moved back" in capsys.readouterr().err
    blocked.unlink()
    assert main(["audit", "--undo", str(aside)]) == 0
    assert content() == before
    assert not list(aside.iterdir())


@pytest.mark.parametrize("name", ["../b.png", "a/../../b.png", "/b.png", "C:\\b.png", "C:b.png", "..\\b.png", "."])
def test_undo_moves_only_what_lies_in_the_folder(name, tmp_path, capsys):
    """A manifest is a file like any other: somebody may have sent it."""
    aside, other = tmp_path / "aside", tmp_path / "b.png"
    aside.mkdir()
    for path in (aside / "x.png", other):
        path.write_text("mine")
    entries = {"x.png": str(tmp_path / "x.png"), name: str(tmp_path / "taken.png")}
    (aside / "moved-by-audit.json").write_text(json.dumps(entries))
    assert main(["audit", "--undo", str(aside)]) == 2
    assert f"{name!r} is no file of this folder; nothing was moved" in capsys.readouterr().err
    assert other.exists()
    assert {path.name for path in aside.iterdir()} == {"x.png", "moved-by-audit.json"}


def test_images_are_not_moved_into_their_own_folder(folders, tmp_path, telling, capsys):
    folders, _ = folders
    assert audit(folders, tmp_path, "--move-to", folders["unlabeled"] / "aside", "--apply") == 2
    assert "lies in the unlabeled folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit", "--scroe", "lora"], "--scroe: no such option, did you mean --score?"),
        (["audit", "--top", "0"], "--top: must be a whole number from 1, got '0'"),
        (["audit", "--score", "clip"], "--score: must be 'unet', 'encoder' or 'lora', got 'clip'"),
        (["audit", "--score", "encoder"], "--score encoder and --encoder go together"),
        (["audit", "--lora", "x.safetensors"], "--score lora and --lora go together"),
        (["audit", "--score", "lora", "--lora", "x.safetensors"], "--lora: no file x.safetensors"),
        (
            ["audit", "--score", "encoder", "--encoder", "nowhere"],
            "--encoder: nowhere cannot be loaded as an image",
        ),
        (["audit", "--apply"], "--move-to"),
        (["audit", "--keep-at-most", "0.1"], "--keep-at-most: says how many images --move-to or --exclude takes"),
        (["audit", "--keep-at-most", "0.1", "--top", "3", "--exclude", "x"], "takes the place of --top"),
        (["audit", "--keep-at-most", "2", "--exclude", "x"], "--keep-at-most: must be"),
        (["audit", "--undo", ".", "--move-to", "x"], "--undo: only moves images back; leave out --move-to"),
        (["audit", "--undo", "."], "--undo: . holds no images that audit --apply moved there"),
        (["audit", "--priro", "0.2"], "--prior"),
        (["prior", "--unlabeled", "nowhere"], "no folder nowhere"),
        (["prior", "--objective", "unsupervised", "--base", "builtin", "--unlabeled", "."], "no images"),
    ],
)
def test_wrong_input(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_an_encoder_of_ones_own(digit_folders, tmp_path):
    """Its features as transformers gives them: a small random CLIP and a ViT."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=small, projection_dim=12)).save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "clip")
    ViTModel(ViTConfig(**vision)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    samples = [Sample(path, None) for path in sorted(digit_folders["unlabeled"].glob("*.png"))]
    for name, width in (("clip", 12), ("vit", 16)):
        shape = {"resolution": 64, "bucket": True, "device": torch.device("cpu")}
        found = encoder_features([s.path for s in samples], str(tmp_path / name), **shape, progress=lambda *_: None)
        assert found.shape == (len(samples), width)
        assert np.ptp(found, axis=0).max() > 0


@pytest.mark.long
def test_a_lora_shows_what_it_raised(digit_folders, tmp_path, capsys):
    """A LoRA that does nothing raises nothing; one that was trained tells images apart."""
    data = ["--base", "builtin", "--prompt", "a photo of a digit", "--resolution", 64, "--output-dir", tmp_path]
    data += ["--unlabeled", digit_folders["unlabeled"], "--sensitive", digit_folders["sensitive"]]
    quick = ["--steps", 4, "--lr", "1e-2", "--rank", 4, "--calibration-samples", 1, "--images", 0]
    assert main([str(w) for w in (*data, *quick, "--batch-unlabeled", 2, "--batch-sensitive", 2)]) == 0
    lora = tmp_path / "pu-lora.safetensors"
    assert main([str(w) for w in ("audit", *data, "--score", "lora", "--lora", lora)]) == 0
    result = json.loads((tmp_path / "pu-lora-audit" / "audit.json").read_text(encoding="utf-8"))
    assert result["prior"] is None
    scores = [entry["score"] for entry in result["ranked"]]
    assert max(scores) > min(scores)
    zero = {k: v * 0 if "lora_up" in k else v for k, v in load_file(lora).items()}
    save_file(zero, tmp_path / "zero.safetensors")
    assert main([str(w) for w in ("audit", *data, "--score", "lora", "--lora", tmp_path / "zero.safetensors")]) == 0
    result = json.loads((tmp_path / "pu-lora-audit" / "audit.json").read_text(encoding="utf-8"))
    assert max(abs(entry["score"]) for entry in result["ranked"]) < 1e-5


def test_other_pictures_are_no_duplicates(digit_folders):
    paths = sorted(digit_folders["unlabeled"].glob("*.png")) + sorted(digit_folders["sensitive"].glob("*.png"))
    assert near_duplicates(paths) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("n_unlabeled", "n_sensitive", "share", "most"),
    [
        (400, 100, 0.05, 0.04),
        (400, 100, 0.1, 0.04),
        (400, 100, 0.2, 0.04),
        (400, 100, 0.4, 0.08),
        (400, 20, 0.05, 0.04),
        (400, 20, 0.1, 0.06),
        (80, 20, 0.1, 0.08),
        (80, 20, 0.2, 0.08),
    ],
)
def test_prior_of_digits(n_unlabeled, n_sensitive, share, most, pool):
    """Mean error over five draws, and intervals that cover."""
    values, odd = pool
    found = []
    for draw in range(5):
        rng = np.random.default_rng(draw)
        odds, evens = rng.permutation(np.flatnonzero(odd)), rng.permutation(np.flatnonzero(~odd))
        hidden = round(share * n_unlabeled)
        chosen = [odds[:hidden], evens[: n_unlabeled - hidden], odds[hidden : hidden + n_sensitive]]
        labels = np.arange(n_unlabeled + n_sensitive) >= n_unlabeled
        scores = class_prior.cross_fit(values[np.concatenate(chosen)], labels, seed=draw)
        found.append(class_prior.estimate(scores, labels, seed=draw))
    errors = [abs(p.value - share) for p in found]
    assert np.mean(errors) <= most
    assert share == 0.2 or np.mean(errors) < abs(0.2 - share)  # better than always saying 0.2
    assert sum(p.low <= share <= p.high for p in found) >= 4


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Features of all digits that neither the base model nor the classifier was trained on, and which are odd."""
    parts = [digits.load(name) for name in ("folders", "held_out")]
    folder = tmp_path_factory.mktemp("pool")
    samples = []
    for i, image in enumerate(np.concatenate([digits.render(part.images) for part in parts])):
        samples.append(Sample(folder / f"{i:04d}.png", None))
        Image.fromarray(image).save(samples[-1].path)
    values = unet_features(images(samples, folder / "cache"))
    return values, digits.is_sensitive(np.concatenate([part.labels for part in parts]))
