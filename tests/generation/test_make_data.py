"""`make-data`: the two folders of a training from the built-in model, whose digits the classifier can read."""

import html
import json
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.__main__ import main
from trainer.builtin import MODEL
from trainer.common.errors import Stopped
from trainer.data import captions
from trainer.generation import dataset_manifest, dataset_recipe, generate, make_data_command
from trainer.metrics.digit_judge import DigitJudge
from trainer.models import base_model, pipeline

SMALL = ["--n-unlabeled", 3, "--n-contaminate", 2, "--n-sensitive", 3, "--steps", 2, "--micro-batch", 2]
COUNTS = {"normal": 3, "hidden": 2, "sensitive": 3}


def call(out, *words):
    return main([str(w) for w in ("make-data", "--out", out, *SMALL, *words)])


def files(out):
    """Name -> bytes of all that was made but the texts about it."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.png")}


def lines(out):
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("make") / "Bilder für <später>"
    assert call(out, "--sensitive-captions") == 0
    return out


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def test_folders_manifest_and_metadata_agree(made):
    records = lines(made)
    names = [str(p.relative_to(made)).replace("\\", "/") for p in made.glob("*/*.png")]
    assert [r["file"] for r in records] == sorted(names)
    assert {k: sum(r["kind"] == k for r in records) for k in COUNTS} == COUNTS
    assert len({r["seed"] for r in records}) == len(records)
    for record in records:
        with Image.open(made / record["file"]) as picture:
            assert json.loads(picture.info["pu_unlearn"]) == record
            assert picture.size == (64, 64)
        assert record["file"].startswith("sensitive/" if record["kind"] == "sensitive" else "unlabeled/")
        assert record["prompt"] == f"a photo of the digit {'four' if record['kind'] == 'normal' else 'three'}"
        settings = {"steps": 2, "guidance": 3.0, "sampler": "ddim", "base": "builtin", "resolution": 64}
        assert record.items() >= settings.items()


def test_pictures_are_those_of_their_seeds_and_prompts(made):
    pipe = pipeline.load_pipeline(base_model.Base(MODEL))
    for record in lines(made)[::3]:
        settings = generate.PictureSettings(64, steps=2, guidance=3.0)
        (wanted,) = generate.generate_pictures(pipe, record["prompt"], [record["seed"]], settings).astype(int)
        assert np.abs(np.asarray(Image.open(made / record["file"])) - wanted).max() <= 1


def test_captions_are_of_sensitive_images_only(made):
    texts = list(made.rglob("*.txt"))
    assert [t.parent.name for t in texts] == ["sensitive"] * 3
    assert {captions.caption_of(t.with_suffix(".png")) for t in texts} == {"a photo of the digit three"}


def test_result_and_page(made):
    result = json.loads((made / "make-data.json").read_text(encoding="utf-8"))
    assert result["counts"] == COUNTS
    assert result["prior"] == pytest.approx(2 / 5)
    page = (made / "report.html").read_text(encoding="utf-8")
    assert html.escape(made.name) in page
    assert "<später>" not in page
    assert "://" not in page
    with Image.open(made / "sheet.png") as sheet:
        assert sheet.width > 500


def test_names_do_not_tell_what_is_hidden():
    """In the order of names each place holds a hidden image equally often, whatever the seed."""
    hits = np.zeros(20)
    for seed in range(300):
        found = dataset_recipe.image_specs(dataset_recipe.Recipe(seed=seed, n_unlabeled=15, n_contaminate=5))
        mixture = sorted((i for i in found if i.kind != "sensitive"), key=lambda i: i.file)
        hits += [i.kind == "hidden" for i in mixture]
    assert hits.sum() == 1500
    assert np.square(hits - 75).sum() / (75 * 0.75) < 43.8  # chi-square of 19 degrees: beyond it in 1 of 1,000


def test_seeds_are_disjoint_and_fit_torch():
    """Whatever is asked for: torch's generator reads the lower 32 bits only."""
    last = dataset_recipe.MAX_PER_KIND - 1
    edges = [
        (seed, dataset_recipe.image_spec(dataset_recipe.Recipe(seed=seed), kind, i).seed)
        for seed in (0, 1, dataset_recipe.SEEDS - 1)
        for kind in dataset_recipe.KINDS
        for i in (0, last)
    ]
    found = [seed for _, seed in edges]
    assert found == sorted(set(found))
    assert found[-1] < 2**32
    assert all(b - a == last for a, b in zip(found[::2], found[1::2], strict=True))


def test_the_same_again_makes_nothing_and_loads_nothing(copy, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "load_pipeline", None)
    before = files(copy)
    assert call(copy) == 0
    assert files(copy) == before
    assert "8 of 8 images exist already" in capsys.readouterr().out


def test_larger_numbers_keep_what_is_there(copy):
    before = files(copy)
    assert call(copy, "--n-unlabeled", 5, "--n-contaminate", 3, "--n-sensitive", 4) == 0
    after = files(copy)
    assert {name: after[name] for name in before if name != "sheet.png"} == {
        name: data for name, data in before.items() if name != "sheet.png"
    }
    assert len(after) == len(before) + 4
    assert len(lines(copy)) == 12


def test_a_stopped_run_ends_with_the_same_bits(made, tmp_path, monkeypatch, capsys):
    out, real, saved = tmp_path / "stopped", dataset_manifest.save_image, []

    def save(*args):
        if len(saved) == 3:  # within the second batch
            raise Stopped
        saved.append(real(*args))

    monkeypatch.setattr(dataset_manifest, "save_image", save)
    assert call(out) == 130
    assert "to resume, give the same command again" in capsys.readouterr().err
    assert len(lines(out)) == 3
    monkeypatch.setattr(dataset_manifest, "save_image", real)
    torn = dataset_manifest.replacing(out / "unlabeled" / "00001.png")  # never left: as a power cut leaves it
    torn.__enter__().write_bytes(b"half an image")
    assert call(out) == 0
    assert files(out) == files(made)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_of_a_real_run(tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, "-m", "trainer", "make-data", "--out", out, "--events", "jsonl", "--micro-batch", "1"]
    with subprocess.Popen([str(w) for w in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            event = json.loads(line)
            if event.get("what") == "normal":
                break
        run.terminate()
        started, rest = time.time(), run.stdout.read().splitlines()
        run.stdout.close()
        assert run.wait(20) == 130
    assert time.time() - started < 15  # it had minutes of work left
    assert json.loads(rest[-1])["kind"] == "stopped"
    assert 1 <= len(lines(out)) < 80


REFUSED = {
    "steps": (["--steps", 3], "--steps: the existing images have 2, not 3"),
    "several": (["--guidance", 2, "--sampler", "pndm"], "--sampler: the existing images have 'ddim', not 'pndm'"),
    "prompt": (["--contaminate-prompt", "x"], "--contaminate-prompt: the existing images have 'a photo of the digit"),
    "negative": (["--negative-prompt", "x"], "--negative-prompt: the existing images have None, not 'x'"),
    "seed": (["--seed", 1], "--seed: the existing images have 0, not 1"),
    "fewer": (["--n-unlabeled", 2], "--n-unlabeled: the folder holds more than 2 already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_settings_in_the_same_folder_are_refused(name, copy, capsys):
    words, said = REFUSED[name]
    before = files(copy)
    assert call(copy, *words, "--events", "jsonl") == 2
    out, told = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["kind"] == "occupied"
    assert said in told
    assert ("--guidance: the existing images have 3.0, not 2.0" in told) == (name == "several")
    assert files(copy) == before


def test_images_of_ones_own_are_refused(copy, capsys):
    Image.new("RGB", (9, 9)).save(copy / "sensitive" / "mine.png")
    own = min((copy / "unlabeled").glob("*.png"))
    own.rename(own.with_name("renamed.png"))
    assert call(copy) == 2
    assert "did not make, or not under this name: unlabeled/renamed.png, sensitive/mine.png" in capsys.readouterr().err


def test_bad_options_are_told_all_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--steps", "many", "--n-sensitiv", "9", "--sampler", "best", "--events", "xml", "--resolution", "65"]
    assert main(["make-data", *words]) == 2
    told = capsys.readouterr().err
    for said in (
        "--steps: must be a valid integer",
        "did you mean --n-sensitive?",
        "--sampler: must be 'ddim', 'pndm'",
    ):
        assert said in told
    assert "--events: must be jsonl" in told
    assert "--resolution: must be a multiple of 8" in told
    assert main(["make-data", "--base", "x/y", "--negative-prompt", "z", "--guidance", "1", "--vae", "none"]) == 2
    told = capsys.readouterr().err
    for said in (
        "--vae: none does not exist",
        "--unlabeled-prompt: say",
        "--contaminate-prompt: say",
        "--guidance above",
    ):
        assert said in told
    (tmp_path / "file").write_text("x")
    assert call(tmp_path / "file") == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.rglob("*")] == ["file"]


def test_memory_that_runs_out_halves_the_batch(made, tmp_path, monkeypatch, capsys):
    real, sizes = generate.generate_pictures, []

    def pictures(pipe, prompt, seeds, settings, **how):
        sizes.append(len(seeds))
        if how["at_once"] > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(pipe, prompt, seeds, settings, **how)

    monkeypatch.setattr(generate, "generate_pictures", pictures)
    assert call(tmp_path / "out", "--micro-batch", 4) == 0
    assert sizes == [3, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert "out of memory: batches of 1 from now on" in capsys.readouterr().out
    found, wanted = files(tmp_path / "out"), files(made)
    assert found.keys() == wanted.keys()
    monkeypatch.setattr(generate, "generate_pictures", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError))
    assert call(tmp_path / "none") == 3
    assert "out of memory with one image at a time. Try a smaller --resolution" in capsys.readouterr().err


def test_samplers_differ_and_batches_change_nothing():
    """Ancestral samplers add noise: each image's own."""
    pipe = pipeline.load_pipeline(base_model.Base(MODEL))
    found = {}
    for name in pipeline.SAMPLERS:
        settings = generate.PictureSettings(64, steps=4, guidance=3.0, sampler=name)
        how = ("a photo of a digit", [5, 6], settings)
        found[name], one = (generate.generate_pictures(pipe, *how, at_once=n) for n in (2, 1))
        assert np.abs(found[name].astype(int) - one).max() <= 2, name
    for name, images in found.items():
        assert all(np.abs(images.astype(int) - found[other]).max() > 20 for other in found if other != name)


def test_every_setting_of_looks_changes_them(made, tmp_path):
    plain = {r["file"]: (made / r["file"]).read_bytes() for r in lines(made) if r["kind"] == "sensitive"}
    for words in (["--negative-prompt", "a photo of the digit three"], ["--clip-skip", 2], ["--prediction-type", "v"]):
        out = tmp_path / words[0]
        assert call(out, "--n-unlabeled", 1, "--n-contaminate", 0, *words) == 0
        for name in plain:
            assert np.ptp(np.asarray(Image.open(out / name)).astype(int) - np.asarray(Image.open(made / name))) > 0


def test_batch_by_memory(monkeypatch):
    from trainer.memory import devices

    monkeypatch.setattr(devices, "budget_mib", lambda *_: 5000)
    card, none = torch.device("cuda"), torch.device("cpu")
    assert make_data_command.first_batch_size(dataset_recipe.Recipe(), card) == 4
    assert make_data_command.first_batch_size(dataset_recipe.Recipe(resolution=1024), card) == 1
    assert make_data_command.first_batch_size(dataset_recipe.Recipe(resolution=64), card) == make_data_command.MAX_BATCH
    assert make_data_command.first_batch_size(dataset_recipe.Recipe(), none) == 1
    assert make_data_command.first_batch_size(dataset_recipe.Recipe(micro_batch=7), none) == 7


def test_training_on_it_runs_as_told(made, tmp_path, capsys):
    line = json.loads((made / "make-data.json").read_text(encoding="utf-8"))["train"]
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "trainer"]
    assert words[words.index("--prior") + 1] == "0.4"
    quick = ["--steps", 2, "--calibration-samples", 1, "--images", 0, "--batch-unlabeled", 2, "--batch-sensitive", 2]
    assert main([str(w) for w in (*words[3:], *quick, "--output-dir", tmp_path)]) == 0
    assert "unlabeled: 5 images" in capsys.readouterr().out
    assert (tmp_path / "pu-lora.safetensors").exists()


def test_judge_finds_what_was_asked_for(tmp_path):
    """Odd digits where an odd one is named, even ones elsewhere."""
    words = ["--n-unlabeled", 10, "--n-contaminate", 5, "--n-sensitive", 5, "--steps", 6, "--micro-batch", "auto"]
    assert call(tmp_path, *words) == 0
    judge = DigitJudge()
    rates = {}
    for kind in COUNTS:
        chosen = [np.asarray(Image.open(tmp_path / r["file"])) for r in lines(tmp_path) if r["kind"] == kind]
        rates[kind] = judge.rate(np.stack(chosen)).share
    assert rates["normal"] > 0.9
    assert rates["hidden"] < 0.2
    assert rates["sensitive"] < 0.2
