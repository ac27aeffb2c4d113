"""diffusers and transformers, without what they tell everyone."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries report here what is no news to a user (a missing torchvision, the weights they loaded)."""
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
