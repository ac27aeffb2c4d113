"""The paper's experiments: their settings, their data, and the loop on pixels, a few steps each."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.__main__ import main
from trainer.builtin import CONFIG
from trainer.common import trainer_process
from trainer.common.errors import UserError
from trainer.config.arguments import parse
from trainer.config.train_config import TrainConfig
from trainer.data.images import PLAIN, View
from trainer.evaluation.options import read_options
from trainer.experiments import datasets, pixels, reproduce, run_commands
from trainer.objective.temperature import BINS, LossScale

SPLITS = {"mnist": (25000, 2500, 2500), "cifar10": (20000, 2000, 2000), "stl10": (2000, 200, 200)}
SPLITS["celeba"] = SPLITS["stl10"]


@pytest.mark.parametrize("name", [n for n in reproduce.names() if not n.startswith("sd14")])
def test_settings(name):
    """Every file says what the paper says, and makes a network that fits its images."""
    settings = reproduce.read(name, "paper").settings
    assert tuple(settings["counts"].values())[:3] == SPLITS[settings["dataset"]]
    assert not set(settings["normal"]) & set(settings["sensitive"])
    TrainConfig(**settings["train"])
    if isinstance(settings["unet"], dict):
        with torch.device("meta"):
            unet = pixels.PixelUNet(pixels.UNet2DModel(**settings["unet"]), settings["fold"])
            channels = settings["unet"]["in_channels"] // settings["fold"] ** 2
            x = torch.empty(2, channels, settings["size_px"], settings["size_px"])
            assert unet(x, torch.zeros(2)).sample.shape == x.shape


def test_both_directions_swap_classes_and_nothing_else():
    for a, b in (
        ("mnist-even", "mnist-odd"),
        ("cifar10-animals", "cifar10-vehicles"),
        ("stl10-animals", "stl10-vehicles"),
    ):
        one, other = (reproduce.read(name, "paper").settings for name in (a, b))
        assert (one["normal"], one["sensitive"]) == (other["sensitive"], other["normal"])
        assert {k: v for k, v in one.items() if k not in ("normal", "sensitive")} == {
            k: v for k, v in other.items() if k not in ("normal", "sensitive")
        }


def test_the_commands_of_stable_diffusion_are_commands(monkeypatch, tmp_path):
    """Every line is understood; those with hub ids are not run."""
    seen = []
    for command in reproduce.read("sd14-brad-pitt", "paper").settings["commands"]:
        words = [word.replace("{out}", str(tmp_path)) for word in shlex.split(command["run"])]
        seen.append(words[0])
        if words[0] == "evaluate":
            assert read_options(words[1:]).normal_text == "a photo of a middle-aged man"
        elif words[0].startswith("--"):
            for folder in ("unlabeled", "sensitive"):
                (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            assert parse(words, CONFIG).config.network == "full"
    assert seen.count("evaluate") == 3
    assert seen.count("--base") == 3


def test_commands_are_run_once_and_stop_at_the_first_failure(tmp_path):
    lines = [{"makes": "sheet.png", "run": 'data --sheet "{out}/sheet.png" --output-dir {out}'}]
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "sheet.png").write_text("made before")
    assert run_commands.run_all(lines, tmp_path) == 0
    assert (tmp_path / "sheet.png").read_text() == "made before"
    with pytest.raises(UserError, match="ended with exit code 2"):
        run_commands.run_all([{"makes": "x", "run": "sample --base nowhere.safetensors"}], tmp_path)


def test_a_training_among_the_commands_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    called = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(trainer_process.subprocess, "run", lambda words, check: called.append(words[2:]) or done)
    lines = [{"makes": "a/report.html", "run": "--steps 3 --output-dir {out} --name a"}]
    first = ["--steps", "3", "--output-dir", str(tmp_path), "--name", "a"]
    run_commands.run_all(lines, tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.toml").touch()  # stopped before its first state
    run_commands.run_all(lines, tmp_path)
    assert not (tmp_path / "a").exists()
    assert called == [first, first]
    state = tmp_path / "a" / "state" / "step00000001.safetensors"
    state.parent.mkdir(parents=True)
    state.touch()
    run_commands.run_all(lines, tmp_path)
    assert called[-1] == ["--resume", "--name=a", f"--output-dir={tmp_path}"]


def test_options_that_commands_do_not_have_are_refused(trainer):
    done = trainer("reproduce", "sd14-brad-pitt", "--objectives", "pu")
    assert done.returncode == 2
    assert "--objectives: not for sd14-brad-pitt" in done.stderr


@pytest.mark.long
def test_small_scale_trains_measures_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = reproduce.read("mnist-even", "small")
    small.settings.update(pictures=20, sampler_steps=2, versions=2)
    small.settings["counts"] = {"unlabeled_normal": 40, "unlabeled_sensitive": 4, "sensitive": 6, "test": 30}
    monkeypatch.setattr(reproduce, "read", lambda name, scale: small)
    words = ["reproduce", "mnist-even", "--scale", "small", "--steps", "2", "--seeds", "0", "--out", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(f"| {objective} |" in said for objective in reproduce.OBJECTIVES)
    out = tmp_path / "mnist-even-small"
    found = json.loads((out / "pu-seed0.json").read_text())
    assert found["n"] == 20
    assert "of 30 normal" in found["judge"]
    assert found["recipe"]["settings"]["train"]["steps"] == 2
    assert (out / "reproduce.html").read_text().count("data:image/png") == 3
    assert len(list((out / "data" / "unlabeled").iterdir())) == 88
    made = (out / "pu-seed0.json").stat().st_mtime_ns
    assert main(words) == 0
    assert (out / "pu-seed0.json").stat().st_mtime_ns == made


@pytest.mark.long
def test_objectives_share_data_but_not_results(tmp_path):
    """Training moves the network, and each objective moves it elsewhere."""
    from trainer.experiments.pixel_run import train

    settings = reproduce.read("mnist-even", "small").settings
    settings["train"] |= {"steps": 3, "batch_unlabeled": 4, "batch_sensitive": 4}
    counts = datasets.Counts(40, 4, 6, 10)
    drawn = datasets.Selection(settings["normal"], settings["sensitive"], counts, size_px=16)
    folders = datasets.write_folders("digits", tmp_path, tmp_path, drawn)
    settings["counts"] = vars(counts)
    found = {}
    for objective in reproduce.OBJECTIVES:
        unet, flips = train(settings, objective, 0, folders, "cpu", lambda *_: None)
        found[objective] = torch.cat([p.flatten() for p in unet.parameters()])
        assert flips >= 0
    assert len({v.sum().item() for v in found.values()}) == 3
    again, _ = train(settings, "pu", 0, folders, "cpu", lambda *_: None)
    assert torch.equal(found["pu"], torch.cat([p.flatten() for p in again.parameters()]))


def test_the_scale_from_scratch_follows_the_model():
    """A hundredth a step towards what this step's unlabeled samples got; bins without a sample stay."""
    scale = LossScale("per-timestep", 2.0, torch.full((BINS,), 1.0))
    t, errors = torch.tensor([0, 10, 999]), torch.tensor([0.2, 0.4, 3.0])
    found = scale.after(t, errors).base_error
    expected = torch.full((BINS,), 1.0)
    expected[0], expected[-1] = 0.99 + 0.01 * 0.3, 0.99 + 0.01 * 3.0
    torch.testing.assert_close(found, expected)
    assert LossScale("fixed", 1.0).after(t, errors).base_error is None


def test_pixels_are_read_as_they_are(tmp_path):
    image = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3) * 51
    Image.fromarray(image).save(tmp_path / "x.png")
    read = pixels.Pixels()
    found = read.latents(tmp_path / "x.png", PLAIN)
    assert found.shape == (1, 2, 3)
    torch.testing.assert_close(found, torch.from_numpy(image)[None] / 127.5 - 1)
    torch.testing.assert_close(read.latents(tmp_path / "x.png", View(flip=True)), found.flip(-1))


def test_folding_is_undone():
    """With a network that returns its input, pixels come back where they were."""

    class Same(torch.nn.Module):
        def forward(self, x, t):
            assert x.shape == (2, 4, 8, 8)
            return pixels.Predicted(x)

    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(pixels.PixelUNet(Same(), 2)(x, torch.zeros(2)).sample, x)


def test_the_sampler_finds_a_known_distribution():
    """Pixels drawn from N(0.3, 0.1^2): the best velocity is known, and DDIM with it gives that mean and spread."""
    noise = pixels.NoiseSettings(0.00085, 0.012, "scaled_linear", "v_prediction")
    alphas = noise.schedule().alphas_cumprod
    mean, std = 0.3, 0.1

    class Best(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))  # tells its device

        def forward(self, x, t, text=None):
            a = alphas[t.long()]
            clean = mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (x - a.sqrt() * mean)
            return pixels.Predicted(((a.sqrt() * x) - clean) / (1 - a).sqrt())

    images = pixels.pictures(Best(), noise, range(40), (1, 8, 8), steps=100) / 127.5 - 1
    assert images.mean() == pytest.approx(mean, abs=0.02)
    assert images.std() == pytest.approx(std, rel=0.15)


def test_folders_keep_kinds_apart(tmp_path):
    from trainer.experiments.pixel_run import enlarged
    from trainer.metrics.digit_judge import DigitJudge

    counts = datasets.Counts(30, 10, 15, 20)
    drawn = datasets.Selection(range(0, 10, 2), range(1, 10, 2), counts, size_px=32)
    folders = datasets.write_folders("digits", tmp_path, tmp_path, drawn)
    reader = DigitJudge()
    shares = {}
    for kind in ("unlabeled", "sensitive", "normal"):
        paths = sorted(folders[kind].glob("*.png"))
        shares[kind] = (len(paths), float(np.mean(reader.classify(enlarged(paths))[0] % 2 == 0)))
    assert shares["unlabeled"] == (40, pytest.approx(0.75, abs=0.03))
    assert shares["sensitive"] == (15, pytest.approx(0, abs=0.07))
    assert shares["normal"] == (20, pytest.approx(1, abs=0.05))
    hashes = {kind: {p.read_bytes() for p in folders[kind].glob("*.png")} for kind in ("unlabeled", "sensitive")}
    assert not hashes["unlabeled"] & hashes["sensitive"]
    many = datasets.Selection([0, 2, 4, 6, 8], [1], datasets.Counts(9000, 1, 1, 1), size_px=32)
    with pytest.raises(UserError, match="digits: 9000 normal images are wanted, it has 2000"):
        datasets.write_folders("digits", tmp_path, tmp_path, many)


def test_versions_are_of_the_images_that_were_drawn(tmp_path):
    """The first of each is the image itself; the others differ a little, and are the same in every run."""
    kinds = [0, 2, 4, 6, 8], [1, 3, 5, 7, 9], datasets.Counts(12, 4, 5, 6)
    for root, versions in (("one", 1), ("three", 3), ("again", 3)):
        drawn = datasets.Selection(*kinds, size_px=32, versions=versions)
        datasets.write_folders("digits", tmp_path, tmp_path / root, drawn)
    read = lambda root, kind: [np.asarray(Image.open(p)) for p in sorted((tmp_path / root / kind).glob("*.png"))]  # noqa: E731
    for kind, n in (("unlabeled", 16), ("sensitive", 5)):
        one, three, again = (read(root, kind) for root in ("one", "three", "again"))
        assert (len(one), len(three)) == (n, 3 * n)
        assert all(np.array_equal(a, b) for a, b in zip(one, three, strict=False))
        assert all(np.array_equal(a, b) for a, b in zip(three, again, strict=True))
        plain, varied = np.array(three[:n], int), np.array(three[n : 2 * n], int)
        assert all(np.abs(plain - varied).mean((1, 2)) > 0)
        assert np.abs(plain - varied).mean() < 0.9 * np.abs(plain - np.roll(varied, 1, 0)).mean()
    assert len(read("three", "labeled/normal")) == 6


def test_a_dataset_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match="cifar10: torchvision reads this dataset"):
        datasets.load("cifar10", tmp_path, train=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fashion"], "fashion: no such experiment; there are celeba-female-pretrained, "),
        (["cifar10-animals", "--scale", "small"], "has no small scale; mnist-even, mnist-odd have one"),
    ],
)
def test_wrong_calls(words, said, trainer):
    done = trainer("reproduce", *words)
    assert done.returncode == 2
    assert said in done.stderr
