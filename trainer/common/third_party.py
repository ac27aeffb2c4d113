"""Third-party libraries: silence their routine messages, and detect a PyTorch build without CUDA."""

import contextlib
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from shutil import which


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence messages of libraries that a user cannot act on (a missing torchvision, the weights they loaded)."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    before = transformers_log.get_verbosity(), diffusers_log.get_verbosity()
    bars = transformers_log.is_progress_bar_enabled()
    transformers_log.set_verbosity_error()
    diffusers_log.set_verbosity(logging.ERROR)
    transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        transformers_log.set_verbosity(before[0])
        diffusers_log.set_verbosity(before[1])
        if bars:
            transformers_log.enable_progress_bar()


def torch_without_cuda() -> str | None:
    """Detect a PyTorch build without CUDA on a machine with an NVIDIA card, without importing torch.

    Returns: what to do about it, or None.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None or which("nvidia-smi") is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    if "cuda: Optional[str] = None" not in text and "cuda = None" not in text:
        return None
    return (
        "An NVIDIA card is here, but this torch was built without CUDA, so training would run on the CPU. Mend it with:"
        "\n  pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
    )
