"""Who says whether a picture is normal or sensitive, and how far that can be trusted: measured on labeled images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.errors import UserError
from ..common.third_party import quiet
from ..data.images import images_in
from .statistics import wilson

KINDS = ("normal", "sensitive")  # the two folders of labeled images
AT_ONCE = 16
IsNormal = Callable[[Sequence[Path]], np.ndarray]  # image files -> [n] bool


@dataclass(frozen=True)
class Accuracy:
    """On labeled images that the judge was not trained on."""

    normal_right: int
    normal: int
    sensitive_right: int
    sensitive: int

    @property
    def balanced(self) -> float:
        """Mean of the shares that are right among normal and among sensitive images: chance gives 0.5."""
        return (self.normal_right / self.normal + self.sensitive_right / self.sensitive) / 2

    @property
    def is_chance(self) -> bool:
        """Whether the judge may be guessing: both lower limits together reach no more than a coin does."""
        lows = wilson(self.normal_right, self.normal)[0], wilson(self.sensitive_right, self.sensitive)[0]
        return sum(lows) / 2 <= 0.5

    def told(self) -> str:
        return (
            f"right on {self.normal_right} of {self.normal} normal and {self.sensitive_right} of {self.sensitive} "
            f"sensitive images it had not seen (balanced accuracy {self.balanced:.2f})"
        )


@dataclass(frozen=True)
class Judge:
    name: str
    is_normal: IsNormal
    accuracy: Accuracy | None  # None: no labeled images to measure it on


def labeled_images(folder: Path) -> tuple[list[Path], np.ndarray]:
    """The images of folder/normal and folder/sensitive. Returns: (paths, [n] bool: is sensitive). Raises: UserError."""
    piles = {kind: images_in(folder / kind) for kind in KINDS}
    for kind, paths in piles.items():
        if len(paths) < 10:
            raise UserError(
                f"--labeled: {folder / kind} holds {len(paths)} images; at least 10 of each kind are needed"
            )
    paths = [path for kind in KINDS for path in piles[kind]]
    return paths, np.repeat([False, True], [len(piles[kind]) for kind in KINDS])


def from_labeled(labeled: Path, features: Callable[[Sequence[Path]], np.ndarray], *, seed: int) -> Judge:
    """A classifier trained on the user's two folders; its accuracy is that of five others, each on a fifth unseen.

    Args: features: image files -> [n, d]. Raises: UserError with too few images.
    """
    from ..objective import class_prior

    paths, is_sensitive = labeled_images(labeled)
    found = features(paths)
    scores = class_prior.cross_fit(found, is_sensitive, seed=seed)
    classifier = class_prior.fit(found, is_sensitive)
    # equal odds at the threshold, whatever the folders' sizes are
    threshold = float(is_sensitive.mean())
    return Judge(
        f"a classifier trained on {len(paths)} labeled images",
        lambda pictures: classifier(features(pictures)) < threshold,
        accuracy(scores < threshold, is_sensitive),
    )


def from_model(source: str, sensitive_labels: Sequence[str], labeled: Path | None) -> Judge:
    """An image classifier of transformers (folder or hub id).

    Args: sensitive_labels: those of its labels that count as sensitive.
    Raises: UserError if it cannot be loaded or has no such label.
    """
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(source)
            model = AutoModelForImageClassification.from_pretrained(source, use_safetensors=True).eval()
    except Exception as error:  # transformers, hub and safetensors each raise their own
        raise UserError(f"--judge: {source} is no image classifier here ({str(error).splitlines()[0]})") from None
    wanted = _numbers({int(i): name for i, name in model.config.id2label.items()}, sensitive_labels)

    @torch.no_grad()
    def is_normal(paths: Sequence[Path]) -> np.ndarray:
        pixels = processor(images=[_opened(path) for path in paths], return_tensors="pt").pixel_values
        return ~np.isin(model(pixel_values=pixels).logits.argmax(-1).numpy(), wanted)

    return measured(Path(source).name, is_normal, labeled)


def from_onnx(file: Path, sensitive_labels: Sequence[str], labeled: Path | None) -> Judge:
    """An image classifier as an ONNX file: one image input [n, 3, h, w] in ImageNet's scale, one row of logits each.

    Args: sensitive_labels: numbers of its classes. Raises: UserError.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("--judge: an ONNX file needs a package. Install it: pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own
        raise UserError(f"--judge: {file} cannot be read ({str(error).splitlines()[0]})") from None
    place = session.get_inputs()[0]
    if len(place.shape) != 4 or place.shape[1] != 3:
        raise UserError(f"--judge: {file} wants {place.shape}, not images [n, 3, height, width]")
    height, width = (side if isinstance(side, int) else 224 for side in place.shape[2:])
    rows = session.get_outputs()[0].shape[-1]
    wanted = _numbers({i: str(i) for i in range(rows if isinstance(rows, int) else 1000)}, sensitive_labels)

    def is_normal(paths: Sequence[Path]) -> np.ndarray:
        return np.array([session.run(None, {place.name: _imagenet(p, width, height)})[0].argmax() for p in paths])

    return measured(file.name, lambda paths: ~np.isin(is_normal(paths), wanted), labeled)


def from_clip(source: str, normal: str, sensitive: str, labeled: Path | None) -> Judge:
    """CLIP (folder or hub id): whichever of two sentences is nearer. Raises: UserError if it cannot be loaded."""
    import torch
    from transformers import CLIPModel, CLIPProcessor

    try:
        with quiet():
            model, processor = (
                CLIPModel.from_pretrained(source, use_safetensors=True).eval(),
                CLIPProcessor.from_pretrained(source),
            )
    except Exception as error:  # transformers, hub and safetensors each raise their own
        raise UserError(f"--clip: {source} is no CLIP model here ({str(error).splitlines()[0]})") from None

    @torch.no_grad()
    def is_normal(paths: Sequence[Path]) -> np.ndarray:
        images = [_opened(path) for path in paths]
        inputs = processor(text=[normal, sensitive], images=images, return_tensors="pt", padding=True)
        return model(**inputs).logits_per_image.argmax(-1).numpy() == 0

    return measured(f"CLIP, “{normal}” against “{sensitive}”", is_normal, labeled)


def measured(name: str, is_normal: IsNormal, labeled: Path | None) -> Judge:
    """The judge in batches, with its accuracy where labeled images are there."""

    def in_batches(paths: Sequence[Path]) -> np.ndarray:
        return np.concatenate([is_normal(paths[i : i + AT_ONCE]) for i in range(0, len(paths), AT_ONCE)])

    if labeled is None:
        return Judge(name, in_batches, None)
    paths, is_sensitive = labeled_images(labeled)
    return Judge(name, in_batches, accuracy(in_batches(paths), is_sensitive))


def accuracy(found_normal: np.ndarray, is_sensitive: np.ndarray) -> Accuracy:
    return Accuracy(
        int(found_normal[~is_sensitive].sum()),
        int((~is_sensitive).sum()),
        int((~found_normal[is_sensitive]).sum()),
        int(is_sensitive.sum()),
    )


def _numbers(labels: dict[int, str], wanted: Sequence[str]) -> list[int]:
    unknown = [name for name in wanted if name not in labels.values()]
    if unknown or not wanted:
        shown = ", ".join(list(labels.values())[:12])
        raise UserError(f"--sensitive-labels: no label {', '.join(unknown) or 'named'}; this judge knows {shown}, …")
    return [i for i, name in labels.items() if name in wanted]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _imagenet(path: Path, width: int, height: int) -> Any:
    pixels = np.asarray(_opened(path).resize((width, height)), np.float32) / 255
    scaled = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return scaled.transpose(2, 0, 1)[None].astype(np.float32)
