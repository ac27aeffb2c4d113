"""Damaged headers, weights, PNGs and TOMLs: whatever is wrong with them, a sentence of ours says it, or they load."""

import random

import pytest
import safetensors.torch
import torch
from PIL import Image
from random_checkpoint import SMALL, fake, part, shapes

from trainer.builtin import MODEL
from trainer.common.errors import UserError
from trainer.config import arguments
from trainer.data import folders
from trainer.models import base_model, lora_file

FEW, MANY = 150, 25_000  # of each kind
TOKENS = (b"null", b"-1", b"1e999", b"[]", b"{}", b'"x"', b"NaN", b"true", b"\xff\xfe", b"\0", b"99999999999999999999")


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change, cut, repeat or insert something in one to three places."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place, length = chance.randrange(len(found) + 1), chance.choice((1, 1, 2, 4, 8, 64))
        kind = chance.randrange(5)
        if kind == 0:
            found[place : place + length] = chance.randbytes(length)
        elif kind == 1:
            del found[place : place + length]
        elif kind == 2:
            found[place:place] = chance.choice(TOKENS)
        elif kind == 3:
            found[place : place + length] = chance.choice(TOKENS)
        else:
            del found[place:]
    return bytes(found)


def header(tmp_path):
    """Of a checkpoint that is a header and a hole; often the length is made right again, so that JSON is reached."""
    vae = fake(tmp_path / "vae.safetensors", part(shapes(SMALL), "first_stage_model."), {"a": "b"})
    data = vae.read_bytes()
    length = int.from_bytes(data[:8], "little")
    head, path = data[8 : 8 + length], tmp_path / "x.safetensors"

    def check(chance):
        new = mutated(head, chance)
        given = len(new) if chance.random() < 0.9 else chance.randrange(2**64)
        path.write_bytes(given.to_bytes(8, "little") + new)
        with open(path, "ab") as file:
            file.truncate(8 + len(new) + len(data) - 8 - length)
        base_model.check(base_model.Base(path if chance.random() < 0.5 else MODEL, path))

    return check


def lora(tmp_path):
    name, path = "lora_unet_mid_block_attentions_0_proj_in", tmp_path / "x.safetensors"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 3), f"{name}.lora_up.weight": torch.ones(3, 2)}
    data = safetensors.torch.save({**tensors, f"{name}.alpha": torch.tensor(2.0)}, metadata={"a": "b"})

    def check(chance):
        path.write_bytes(mutated(data, chance))
        lora_file.read(path)

    return check


def png(tmp_path):
    Image.effect_noise((16, 16), 9).save(tmp_path / "whole.png", exif=Image.Exif(), dpi=(72, 72))
    data, folder = (tmp_path / "whole.png").read_bytes(), tmp_path / "images"
    folder.mkdir()

    def check(chance):
        (folder / "x.png").write_bytes(mutated(data, chance))
        reading = folders.Reading(prompt="x", skip_bad_images=True)
        for sample in folders.scan(folder, None, reading, seed=0).unlabeled:
            with Image.open(sample.path) as image:
                image.convert("RGB")

    return check


def toml(tmp_path):
    lines = (
        'base = "x"',
        "steps = 10",
        "lr = 1e-4",
        "flip = true",
        'prior = "auto"',
        'name = "küste"',
        "[x]",
        'a = ["2"]',
    )
    data, path, builtin = "\n".join(lines).encode(), tmp_path / "x.toml", tmp_path / "builtin.toml"
    builtin.touch()

    def check(chance):
        path.write_bytes(mutated(data, chance))
        problems = []
        arguments.read_toml(path, problems)
        assert all(isinstance(text, str) for text in problems)
        arguments.parse(["--config", str(path)], builtin)

    return check


KINDS = {"header": header, "lora": lora, "png": png, "toml": toml}


def hold(kind, tmp_path, seeds):
    check, told = KINDS[kind](tmp_path), 0
    for seed in seeds:
        try:
            check(random.Random(seed))
        except UserError as error:
            told += 1
            assert str(error).strip(), seed
        except Exception as error:
            raise AssertionError(f"{kind}, mutation {seed}: {type(error).__name__}: {error}") from error
    assert told > len(seeds) / 10  # they do reach what reads them


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_told_in_a_sentence(kind, tmp_path):
    hold(kind, tmp_path, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_told_in_a_sentence(kind, tmp_path):
    hold(kind, tmp_path, range(FEW, MANY))
