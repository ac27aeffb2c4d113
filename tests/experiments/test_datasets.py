"""The paper's datasets: read by torchvision from files as published, and trained on, a few steps each."""

import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.experiments import datasets, pixel_run, pixels, reproduce

CLASSES = {"mnist": 10, "cifar10": 10, "stl10": 10, "celeba": 2}
SIZES = {"mnist": (28, 28), "cifar10": (32, 32), "stl10": (96, 96), "celeba": (218, 178)}  # height, width


def pictured(label, height, width):
    """[height, width, 3] uint8: darker below and to the right, so that its sides differ; its level is its class."""
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    gray = 250 - 10 * label - 60 * down - 30 * right
    return np.stack([gray, gray / 2, gray / 4], -1).astype(np.uint8)


def label_in(image):
    """What `pictured` wrote, whatever the size."""
    pixels = np.asarray(image.convert("RGB"), float)[..., 0]
    middle = pixels[tuple(slice(s // 2 - 2, s // 2 + 2) for s in pixels.shape)].mean()
    return round((250 - 45 - middle) / 10)


def is_upright(image):
    pixels = np.asarray(image.convert("L"), float)
    h, w = (s // 4 for s in pixels.shape)
    first, below, beside = pixels[h, w], pixels[-h, w], pixels[h, -w]
    return first > beside > below


def write_mnist(root, labels):
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.stack([pictured(label, 28, 28)[..., 0] for label in labels])
    for part in ("train", "t10k"):
        head = struct.pack(">IIII", 0x00000803, len(images), 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">II", 0x00000801, len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes(labels))


def write_cifar10(root, labels):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rows = np.stack([pictured(label, 32, 32).transpose(2, 0, 1).ravel() for label in labels])
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels, "batch_label": name}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names, "num_vis": 3072}))


def write_stl10(root, labels):
    folder = root / "stl10_binary"
    folder.mkdir()
    by_column = np.stack([pictured(label, 96, 96).transpose(2, 1, 0) for label in labels])
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(by_column.tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes(label + 1 for label in labels))
    (folder / "unlabeled_X.bin").write_bytes(b"")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")


def write_celeba(root, labels):
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    of_parts = [(label, part) for part in (0, 2) for label in labels]  # train, test
    both = [(f"{i:06d}.jpg", *which) for i, which in enumerate(of_parts, 1)]
    for name, label, _ in both:
        Image.fromarray(pictured(label, 218, 178)).save(folder / "img_align_celeba" / name, quality=95)
    lines = {
        "list_eval_partition.txt": [f"{name} {part}" for name, _, part in both],
        "identity_CelebA.txt": [f"{name} 7" for name, _, _ in both],
        "list_bbox_celeba.txt": [str(len(both)), "image_id x_1 y_1 width height"]
        + [f"{name}    95  71 226 313" for name, _, _ in both],
        "list_landmarks_align_celeba.txt": [str(len(both)), "lefteye_x lefteye_y"]
        + [f"{name} 69  109" for name, _, _ in both],
        "list_attr_celeba.txt": [str(len(both)), "Bald Male Young "]
        + [f"{name} -1  {2 * label - 1:d}  1" for name, label, _ in both],
    }
    for name, text in lines.items():
        (folder / name).write_text("\n".join(text) + "\n")


@pytest.fixture(params=CLASSES)
def published(request, tmp_path, monkeypatch):
    """A dataset's files. Returns: (its name, where they are, labels of each split)."""
    pytest.importorskip("torchvision")
    from torchvision.datasets import celeba, cifar, stl10

    for module in (celeba, cifar, stl10):  # what is in these files is ours, so are their checksums
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: True)
    labels = [i % CLASSES[request.param] for i in range(20)]
    root = tmp_path / "datasets"
    root.mkdir()
    globals()[f"write_{request.param}"](root, labels)
    return request.param, root, labels


def test_files_as_published_are_read(published):
    name, root, labels = published
    for train in (True, False):
        found = datasets.load(name, root, train=train)
        expected = labels * 5 if name == "cifar10" and train else labels
        assert found.labels.tolist() == expected
        for i, label in enumerate(expected):
            image = found.image(i)
            assert (image.height, image.width) == ((32, 32) if name == "mnist" else SIZES[name])  # MNIST has a border
            assert label_in(image) == label
            assert is_upright(image)


def test_every_kind_goes_into_its_folder(published, tmp_path):
    name, root, _labels = published
    normal = range(CLASSES[name] // 2)
    sensitive = range(CLASSES[name] // 2, CLASSES[name])
    drawn = datasets.Selection(normal, sensitive, datasets.Counts(6, 3, 4, 5), size_px=32)
    folders = datasets.write_folders(name, root, tmp_path / "out", drawn)
    seen = {kind: [label_in(Image.open(p)) for p in sorted(folders[kind].glob("*.png"))] for kind in folders}
    assert sum(label in normal for label in seen["unlabeled"]) == 6
    assert len(seen["unlabeled"]) == 9
    assert len(seen["sensitive"]) == 4
    assert set(seen["sensitive"]) <= set(sensitive)
    assert len(seen["normal"]) == 5
    assert set(seen["normal"]) <= set(normal)
    assert all(is_upright(Image.open(p)) for kind in ("unlabeled", "sensitive") for p in folders[kind].glob("*.png"))


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["cifar10-animals", "cifar10-animals-pretrained", "stl10-animals", "celeba-female-pretrained"]
)
def test_the_loop_runs_on_each(name, tmp_path, monkeypatch):
    """Two steps of `pu`, pictures, a judge and a distance, with the experiment's settings on a narrow network."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    settings = reproduce.read(name, "paper").settings
    height, width = SIZES[settings["dataset"]]
    classes = [*settings["normal"], *settings["sensitive"]] * 12
    levels = [0 if label in settings["normal"] else 12 for label in classes]  # so that even this judge can tell them
    images = [Image.fromarray(pictured(level, height, width)) for level in levels]
    monkeypatch.setattr(datasets, "load", lambda *_, **__: datasets.Labeled(images, np.array(classes)))
    torch.manual_seed(0)
    tiny = {"block_out_channels": [32] * 4, "norm_num_groups": 8, "layers_per_block": 1}
    if isinstance(settings["unet"], dict):
        settings["unet"] |= tiny
    else:
        settings["unet"] = str(tmp_path / "ddpm")
        blocks = {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4}
        pixels.UNet2DModel(sample_size=settings["size_px"], **tiny, **blocks).save_pretrained(settings["unet"])
    settings["judge"] = str(tmp_path / "vit")
    vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**vit, image_size=32, patch_size=8)).save_pretrained(settings["judge"])
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(settings["judge"])
    settings |= {"counts": {"unlabeled_normal": 8, "unlabeled_sensitive": 2, "sensitive": 4, "test": 12}}
    settings |= {"pictures": 3, "sampler_steps": 2}
    settings["train"] |= {"steps": 2, "batch_unlabeled": 2, "batch_sensitive": 2, "calibration_samples": 1}

    kinds = {key: settings[key] for key in ("normal", "sensitive", "size_px", "versions")}
    counts = datasets.Counts(**settings["counts"])
    drawn = datasets.Selection(**kinds, counts=counts)
    folders = datasets.write_folders(settings["dataset"], tmp_path, tmp_path / "data", drawn)
    before = pixels.build(settings["unet"], settings["fold"], seed=0)
    unet, _ = pixel_run.train(settings, "pu", 0, folders, "cpu", lambda *_: None)
    moved = [(a - b).abs().max().item() for a, b in zip(unet.parameters(), before.parameters(), strict=True)]
    assert max(moved) > 0
    assert all(np.isfinite(moved))
    paths = pixel_run.make_pictures(settings, unet, 0, tmp_path / "made")
    assert {Image.open(path).size for path in paths} == {(settings["size_px"],) * 2}
    found = pixel_run.measure(settings, paths, folders, "cpu", lambda *_: None)
    assert "right on 12 of 12 normal and 12 of 12 sensitive" in found["judge"]
    assert 0 <= found["low"] <= found["rate"] <= found["high"] <= 1
    assert found["n"] == 3
