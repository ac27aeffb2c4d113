"""Classifiers that label a picture normal or sensitive, with their accuracy measured on labeled images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..common.errors import UserError
from ..common.third_party import quiet
from ..data.images import images_in
from .statistics import wilson

KINDS = ("normal", "sensitive")  # the two folders of labeled images
MIN_LABELED = 10  # images of each kind
BATCH_SIZE = 16
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IsNormal = Callable[[Sequence[Path]], np.ndarray]  # image files -> [n] bool
Features = Callable[[Sequence[Path]], np.ndarray]  # image files -> [n, d]


@dataclass(frozen=True)
class Accuracy:
    """Counts of correct labels, on labeled images that the judge was not trained on."""

    normal_right: int  # normal images that the judge calls normal
    normal: int  # normal images in all
    sensitive_right: int
    sensitive: int

    @property
    def balanced(self) -> float:
        """Return the balanced accuracy: the mean of the accuracies on normal and on sensitive images. Chance: 0.5."""
        return (self.normal_right / self.normal + self.sensitive_right / self.sensitive) / 2

    @property
    def is_chance(self) -> bool:
        """Return whether the judge may be guessing: the mean of both lower 95 % limits is at most 0.5."""
        lows = wilson(self.normal_right, self.normal)[0], wilson(self.sensitive_right, self.sensitive)[0]
        return sum(lows) / 2 <= 0.5

    def describe(self) -> str:
        """Return the accuracy as text for people."""
        return (
            f"right on {self.normal_right} of {self.normal} normal and {self.sensitive_right} of {self.sensitive} "
            f"sensitive images it was not trained on (balanced accuracy {self.balanced:.2f})"
        )


@dataclass(frozen=True)
class Judge:
    """A classifier of image files, with its name for people."""

    name: str
    is_normal: IsNormal
    accuracy: Accuracy | None  # None: no labeled images to measure it on


def labeled_images(folder: Path) -> tuple[list[Path], np.ndarray]:
    """List the images of folder/normal and folder/sensitive.

    Returns: (paths, [n] bool: whether each is sensitive). Raises: UserError with fewer than MIN_LABELED of a kind.
    """
    by_kind = {kind: images_in(folder / kind) for kind in KINDS}
    for kind, paths in by_kind.items():
        if len(paths) < MIN_LABELED:
            needed = f"at least {MIN_LABELED} images of each kind are needed"
            raise UserError(f"--labeled: {folder / kind} holds {len(paths)}; {needed}")
    paths = [path for kind in KINDS for path in by_kind[kind]]
    return paths, np.repeat([False, True], [len(by_kind[kind]) for kind in KINDS])


def from_labeled(labeled: Path, features: Features, *, seed: int) -> Judge:
    """Train a classifier on labeled/normal and labeled/sensitive. Its accuracy is measured by cross-validation.

    Raises: UserError with fewer than MIN_LABELED images of a kind.
    """
    from ..objective import class_prior

    paths, is_sensitive = labeled_images(labeled)
    values = features(paths)
    scores = class_prior.cross_fit(values, is_sensitive, seed=seed)
    classifier = class_prior.fit(values, is_sensitive)
    # equal odds at the threshold, whatever the folders' sizes are
    threshold = float(is_sensitive.mean())
    return Judge(
        f"a classifier trained on {len(paths)} labeled images",
        lambda pictures: classifier(features(pictures)) < threshold,
        measure_accuracy(scores < threshold, is_sensitive),
    )


def from_model(source: str, sensitive_labels: Sequence[str], labeled: Path | None) -> Judge:
    """Load an image classifier of transformers (folder or hub id).

    Args: sensitive_labels: the classifier's labels that count as sensitive.
    Raises: UserError if the classifier cannot be loaded or has no such label.
    """
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(source)
            model = AutoModelForImageClassification.from_pretrained(source, use_safetensors=True).eval()
    except Exception as error:  # transformers, hub and safetensors each raise their own
        raise UserError(f"--judge: {source} cannot be loaded as an image classifier ({first_line(error)})") from None
    sensitive_ids = _label_ids({int(i): name for i, name in model.config.id2label.items()}, sensitive_labels)

    @torch.no_grad()
    def is_normal(paths: Sequence[Path]) -> np.ndarray:
        pixels = processor(images=[_open_rgb(path) for path in paths], return_tensors="pt").pixel_values
        return ~np.isin(model(pixel_values=pixels).logits.argmax(-1).numpy(), sensitive_ids)

    return make_judge(Path(source).name, is_normal, labeled)


def from_onnx(file: Path, sensitive_labels: Sequence[str], labeled: Path | None) -> Judge:
    """Load an image classifier from an ONNX file: input [n, 3, h, w], normalized as for ImageNet; output [n, classes].

    Args: sensitive_labels: the numbers of the classes that count as sensitive.
    Raises: UserError if onnxruntime is missing, or the file cannot be read, has another input or no such class.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("--judge: an ONNX file needs a package. Install it: pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own
        raise UserError(f"--judge: {file} cannot be read ({first_line(error)})") from None
    image = session.get_inputs()[0]
    if len(image.shape) != 4 or image.shape[1] != 3:
        raise UserError(f"--judge: the input of {file} is {image.shape}, not images [n, 3, height, width]")
    height, width = (side if isinstance(side, int) else 224 for side in image.shape[2:])
    classes = session.get_outputs()[0].shape[-1]
    names = {i: str(i) for i in range(classes if isinstance(classes, int) else 1000)}
    sensitive_ids = _label_ids(names, sensitive_labels)

    def classify(path: Path) -> int:
        return int(session.run(None, {image.name: _imagenet_input(path, width, height)})[0].argmax())

    return make_judge(file.name, lambda paths: ~np.isin([classify(path) for path in paths], sensitive_ids), labeled)


def from_clip(source: str, normal: str, sensitive: str, labeled: Path | None) -> Judge:
    """Load a CLIP model (folder or hub id) that labels a picture by the more similar of two descriptions.

    Raises: UserError if the model cannot be loaded.
    """
    import torch
    from transformers import CLIPModel, CLIPProcessor

    try:
        with quiet():
            model, processor = (
                CLIPModel.from_pretrained(source, use_safetensors=True).eval(),
                CLIPProcessor.from_pretrained(source),
            )
    except Exception as error:  # transformers, hub and safetensors each raise their own
        raise UserError(f"--clip: {source} cannot be loaded as a CLIP model ({first_line(error)})") from None

    @torch.no_grad()
    def is_normal(paths: Sequence[Path]) -> np.ndarray:
        images = [_open_rgb(path) for path in paths]
        inputs = processor(text=[normal, sensitive], images=images, return_tensors="pt", padding=True)
        return model(**inputs).logits_per_image.argmax(-1).numpy() == 0

    return make_judge(f"CLIP, “{normal}” against “{sensitive}”", is_normal, labeled)


def make_judge(name: str, is_normal: IsNormal, labeled: Path | None) -> Judge:
    """Make a judge that classifies in batches of BATCH_SIZE, and measure its accuracy.

    Args: labeled: folder with normal/ and sensitive/ to measure on; None: the accuracy stays unknown.
    Raises: UserError with fewer than MIN_LABELED labeled images of a kind.
    """

    def in_batches(paths: Sequence[Path]) -> np.ndarray:
        return np.concatenate([is_normal(paths[i : i + BATCH_SIZE]) for i in range(0, len(paths), BATCH_SIZE)])

    if labeled is None:
        return Judge(name, in_batches, None)
    paths, is_sensitive = labeled_images(labeled)
    return Judge(name, in_batches, measure_accuracy(in_batches(paths), is_sensitive))


def measure_accuracy(is_normal: np.ndarray, is_sensitive: np.ndarray) -> Accuracy:
    """Count correct labels. Args: is_normal: [n] bool, the judge's labels. is_sensitive: [n] bool, the true ones."""
    return Accuracy(
        int(is_normal[~is_sensitive].sum()),
        int((~is_sensitive).sum()),
        int((~is_normal[is_sensitive]).sum()),
        int(is_sensitive.sum()),
    )


def _label_ids(labels: dict[int, str], sensitive_labels: Sequence[str]) -> list[int]:
    """Return the class numbers of the sensitive labels. Raises: UserError for a label that the classifier lacks."""
    unknown = [name for name in sensitive_labels if name not in labels.values()]
    if unknown or not sensitive_labels:
        known = ", ".join(list(labels.values())[:12])
        problem = f"no label {', '.join(unknown)}" if unknown else "no label was named"
        raise UserError(f"--sensitive-labels: {problem}; this judge knows {known}, …")
    return [i for i, name in labels.items() if name in sensitive_labels]


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where there is no message."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def _open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _imagenet_input(path: Path, width: int, height: int) -> np.ndarray:
    """Read an image as [1, 3, height, width] fp32, normalized by ImageNet's mean and standard deviation."""
    pixels = np.asarray(_open_rgb(path).resize((width, height)), np.float32) / 255
    normalized = (pixels - IMAGENET_MEAN) / IMAGENET_STD
    return normalized.transpose(2, 0, 1)[None].astype(np.float32)
