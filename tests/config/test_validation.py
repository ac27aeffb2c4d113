"""What users get wrong: each with exit code 2 and the sentence that answers it; no traceback, nothing written."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from random_checkpoint import SMALL, Evil, change_config, fake, part, random_state, shapes
from safetensors.torch import save_file

from trainer.__main__ import main
from trainer.builtin import MODEL


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's disk: good folders, bad folders, models of every kind. Spaces and umlauts in its path."""
    root = tmp_path_factory.mktemp("Bilder für später")

    def images(name, n=4):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
        return root / name

    images("u"), images("s"), images("two", 2)
    (root / "empty").mkdir()
    (images("truncated") / "1.png").write_bytes((root / "u" / "1.png").read_bytes()[:200])
    (images("zero bytes") / "1.png").write_bytes(b"")
    (images("text") / "1.png").write_text("no picture")
    (images("latin") / "1.txt").write_bytes("grün".encode("latin-1"))
    Image.new("1", (20_000, 6_000)).save(images("huge") / "1.png")
    (root / "only u" / "unlabeled").mkdir(parents=True)
    (root / "file").write_text("x")
    (root / "broken.toml").write_text("a = = 1")
    (root / "unknown.toml").write_text("stepz = 3")
    (root / "wrong.toml").write_text('steps = "many"')
    (root / "kohya.toml").write_text("train_data_dir = 'x'")
    fake(root / "sdxl.safetensors", {**shapes(SMALL), "conditioner.embedders.0.x": (1,)})
    fake(root / "lora.safetensors", {"lora_unet_x.lora_down.weight": (1,)})
    fake(root / "vae.safetensors", {"decoder.conv_in.weight": (1,)})
    fake(root / "good.safetensors", shapes(SMALL))
    (root / "page.safetensors").write_text("<html>")
    (root / "cut.safetensors").write_bytes((root / "good.safetensors").read_bytes()[:-1000])
    (root / "longer.safetensors").write_bytes((root / "good.safetensors").read_bytes() + b"x")
    fake(root / "no input.safetensors", {k: s for k, s in shapes(SMALL).items() if "input_blocks" not in k})
    fake(root / "no attention.safetensors", {k: s for k, s in shapes(SMALL).items() if "attn2" not in k})
    fake(root / "no encoder.safetensors", {k: s for k, s in shapes(SMALL).items() if "stage_model.encoder." not in k})
    norm = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    save_file({**random_state(SMALL), norm: torch.ones(3)}, root / "text.safetensors")
    (root / "model.ckpt").write_bytes(b"no zip")
    torch.save({"state_dict": part(random_state(SMALL), "first_stage_model.")}, root / "vae.ckpt")
    torch.save([torch.ones(1)], root / "list.ckpt")
    torch.save({"state_dict": random_state(SMALL), "x": Evil()}, root / "evil.ckpt")
    for name, values in CONFIGS.items():
        change_config(shutil.copytree(MODEL, root / name), **values)
    for name, gone in (("no vae", "vae"), ("no weights", "unet/diffusion_pytorch_model.safetensors")):
        shutil.copytree(MODEL, root / name)
        target = root / name / gone
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    shutil.copytree(MODEL, root / "bad json")
    (root / "bad json" / "unet" / "config.json").write_text("{")
    return root


# folders of diffusers -> what makes their U-Net another one
CONFIGS = {
    "sd 2 folder": {"cross_attention_dim": 1024, "use_linear_projection": True},
    "sdxl folder": {"cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time"},
    "inpainting folder": {"in_channels": 9},
    "wide folder": {"cross_attention_dim": 768},
}
GOOD = ["--base", "builtin", "--resolution", "64", "--prompt", "x", "--unlabeled", "@u", "--sensitive", "@s"]


def data(unlabeled="@u", sensitive="@s", *more):
    return ["--base", "builtin", "--prompt", "x", "--unlabeled", unlabeled, "--sensitive", sensitive, *more]


def base(name, *more):
    return ["--base", name, "--prompt", "x", "--unlabeled", "@u", "--sensitive", "@s", *more]


# name -> (arguments, what the answer says); @ stands for the user's disk
CASES = {
    "misspelt option": ([*GOOD, "--stepz", "3"], "--stepz: no such option, did you mean --steps?"),
    "nothing like it": ([*GOOD, "--qqqqqq"], "--qqqqqq: no such option; see --help"),
    "a word alone": ([*GOOD, "photos"], "photos: unexpected; every setting is an option"),
    "value missing": ([*GOOD, "--steps"], "--steps: expected one argument"),
    "steps not a number": ([*GOOD, "--steps", "many"], "--steps: must be a valid integer"),
    "steps zero": ([*GOOD, "--steps", "0"], "--steps: must be greater than or equal to 1, got '0'"),
    "prior one": ([*GOOD, "--prior", "1"], "--prior: must be less than 1"),
    "prior negative": ([*GOOD, "--beta=-0.1"], "--prior: must be greater than 0"),
    "temperature zero": ([*GOOD, "--temperature", "0"], "--temperature: must be greater than 0"),
    "odd resolution": ([*GOOD, "--resolution", "500"], "--resolution: must be a multiple of 8"),
    "huge resolution": ([*GOOD, "--resolution", "4096"], "--resolution: must be less than or equal to 1024"),
    "two resolutions": ([*GOOD, "--resolution", "512,768"], "--resolution: must be a valid integer"),
    "objective": ([*GOOD, "--objective", "pn"], "--objective: must be 'pu', 'nnpu', 'supervised' or 'unsupervised'"),
    "learning rate": ([*GOOD, "--lr", "20"], "--lr: must be less than or equal to 1"),
    "rank": ([*GOOD, "--rank", "1000"], "--rank: must be less than or equal to 256"),
    "device": ([*GOOD, "--device", "gpu"], "--device: must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
    "name with a slash": ([*GOOD, "--name", "../x"], "--name: must be letters, digits, spaces and _.+- only"),
    "micro-batch": ([*GOOD, "--micro-batch", "0"], "--micro-batch: must be greater than or equal to 1"),
    "events": ([*GOOD, "--events", "xml"], "--events: must be jsonl, got 'xml'"),
    "kohya's lowram": ([*GOOD, "--lowram"], "--lowram: means the opposite elsewhere"),
    "kohya's folder": ([*GOOD, "--train_data_dir", "x"], "--train_data_dir: there are two folders here"),
    "no config": ([*GOOD, "--config", "@none.toml"], "--config: cannot read"),
    "broken config": ([*GOOD, "--config", "@broken.toml"], "--config: cannot read"),
    "unknown key": ([*GOOD, "--config", "@unknown.toml"], "no setting named 'stepz', did you mean steps?"),
    "wrong value in a config": ([*GOOD, "--config", "@wrong.toml"], "--steps: must be a valid integer"),
    "kohya's key in a config": ([*GOOD, "--config", "@kohya.toml"], "train_data_dir: there are two folders here"),
    "nothing to resume": ([*GOOD, "--resume", "--name", "none"], "holds no interrupted run"),
    "no such folder": (data("@nowhere"), "--unlabeled: no folder"),
    "folder is a file": (data("@u", "@file"), "--sensitive: no folder"),
    "one folder only": (["--base", "builtin", "--unlabeled", "@u"], "--sensitive: name the folder of sensitive images"),
    "half of --data": (["--base", "builtin", "--data", "@only u"], "--sensitive: no folder"),
    "--data and folders": ([*GOOD, "--data", "@u"], "--data: names both folders already"),
    "no images": (data("@empty"), "no images (looked for .png .jpg .jpeg .webp .bmp and others)"),
    "two sensitive images": (data("@u", "@two"), "2 sensitive images; at least 3 are needed"),
    "truncated image": (data("@truncated"), "1.png: cannot be read"),
    "image of no bytes": (data("@zero bytes"), "1.png: empty file (0 bytes)"),
    "text as image": (data("@text"), "1.png: cannot be read"),
    "huge image": (data("@huge"), "huge (20000 x 6000 px; at most 100 megapixels)"),
    "caption in latin-1": (data("@latin"), "1.txt: not UTF-8 text"),
    "no caption": (GOOD[:4] + GOOD[6:], "4 of 4 images have no caption"),
    "no base": (["--unlabeled", "@u", "--sensitive", "@s", "--base", "@none"], "none does not exist"),
    "base without folders": (["--base", "@good.safetensors"], "--unlabeled and --sensitive: name the two folders"),
    "SDXL": (base("@sdxl.safetensors"), "is SDXL"),
    "LoRA as base": (base("@lora.safetensors"), "is a LoRA, not a base model"),
    "VAE as base": (base("@vae.safetensors"), "is a VAE"),
    "web page as base": (base("@page.safetensors"), "a web page, not a model"),
    "half a download": (base("@cut.safetensors"), "cut off after"),
    "broken ckpt": (base("@model.ckpt"), "is no .ckpt that torch 1.6 or newer wrote"),
    "bytes after the end": (base("@longer.safetensors"), "damaged: "),
    "no input blocks": (base("@no input.safetensors"), "lacks weights of it"),
    "no attention": (base("@no attention.safetensors"), "lacks weights of it"),
    "half a VAE": (base("@no encoder.safetensors"), "lacks weights of it"),
    "VAE as ckpt": (base("@vae.ckpt"), "is a VAE"),
    "ckpt with a program": (base("@evil.ckpt"), "is not opened: it holds more than weights (print). Convert it once"),
    "image as base": (base("@u/1.png"), "neither a folder nor a .safetensors or .ckpt file"),
    "folder without VAE": (base("@no vae"), "it lacks vae"),
    "folder without weights": (base("@no weights"), "holds no diffusion_pytorch_model.safetensors"),
    "folder with a bad config": (base("@bad json"), "cannot read"),
    "SD 2 folder": (base("@sd 2 folder"), "is Stable Diffusion 2.x"),
    "SDXL folder": (base("@sdxl folder"), "is SDXL"),
    "inpainting folder": (base("@inpainting folder"), "is an inpainting model"),
    "folder of two models": (base("@wide folder"), "its U-Net expects text states of width 768"),
    "images as base": (base("@u"), "is no diffusers folder of Stable Diffusion 1.x"),
    "no VAE": ([*GOOD, "--vae", "@none.safetensors"], "--vae:"),
    "LoRA as VAE": ([*GOOD, "--vae", "@lora.safetensors"], "holds no VAE"),
    "no LoRA to start from": ([*GOOD, "--init-lora", "@none"], "--init-lora: no file"),
    "merged checkpoint of a folder": ([*GOOD, "--save-merged", "checkpoint"], "needs a .safetensors file as --base"),
    "rate without a judge": (
        base("@good.safetensors", "--rate-images", "9"),
        "--rate-images: only the built-in digits",
    ),
    "output is a file": ([*GOOD, "--output-dir", "@file"], "is a file, not a folder"),
    "output below a file": ([*GOOD, "--output-dir", "@file/sub"], "file is a file, not a folder"),
    "fp16 on the CPU": ([*GOOD, "--precision", "fp16", "--device", "cpu"], "the CPU trains in fp32 or bf16 only"),
    "sample: no LoRA": (["sample", "--prompt", "x", "--lora", "@none"], "--lora: no file"),
    "sample: seeds": (["sample", "--prompt", "x", "--seeds", "a"], "must be like 0-15 or 3,5,8"),
    "sample: no PNG": (["sample", "--prompt", "x", "--out", "@x.gif"], "must end in .png"),
    "sample: base": (["sample", "--prompt", "x", "--base", "@sdxl.safetensors"], "is SDXL"),
    "sample: mistyped file": (
        ["sample", "--prompt", "x", "--base", "models/v1.safetensors"],
        "v1.safetensors does not",
    ),
    "sample: mistyped name": (["sample", "--prompt", "x", "--base", "v1-5"], "v1-5 does not exist"),
    "sample: text encoder": (
        ["sample", "--prompt", "x", "--base", "@text.safetensors"],
        "such as final_layer_norm.weight",
    ),
    "sample: clip skip": (["sample", "--prompt", "x", "--clip-skip", "12"], "has 2 layers"),
    "sample: device": (["sample", "--prompt", "x", "--device", "gpu"], "must be auto, cpu, cuda, cuda:N or mps, got"),
    "sample: huge seed": (["sample", "--prompt", "x", "--seeds", "9" * 20], "numbers below 2**64"),
    "sample: endless seeds": (["sample", "--prompt", "x", "--seeds", "0-9999999999"], "at most 10000 numbers"),
    "sample: no place": (["sample", "--prompt", "x", "--out", "@file/x.png"], "x.png cannot be written"),
    "make-data: base": (
        ["make-data", "--base", "@sdxl.safetensors", "--unlabeled-prompt", "x", "--contaminate-prompt", "y"],
        "is SDXL",
    ),
    "make-data: no prompts": (["make-data", "--base", "@good.safetensors"], "--unlabeled-prompt: say what"),
    "plan: base": (["plan", "--base", "@lora.safetensors"], "is a LoRA, not a base model"),
    "plan: VAE as ckpt": (["plan", "--base", "@vae.ckpt"], "is a VAE"),
    "plan: no model as ckpt": (["plan", "--base", "@list.ckpt"], "is no Stable Diffusion checkpoint"),
}


def test_there_are_at_least_forty():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", CASES)
def test_answer(name, place, tmp_path, capsys, monkeypatch):
    words, wanted = CASES[name]
    arguments = [w.replace("@", f"{place}/") if w.startswith("@") else w for w in words]
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse of `sample`
        code = stop.code
    said = capsys.readouterr()
    assert code == 2
    assert wanted in said.err, said.err
    assert "Traceback" not in said.err
    written = [p for p in tmp_path.rglob("*") if p.is_file() and p.name not in (".lock", "events.jsonl", "config.toml")]
    assert written == []
