"""Captions as the U-Net reads them: the text encoder's states, in one or several chunks of 75 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 77  # of the text encoder's positions: a begin and an end token, and 75 between


def text_states(
    tokenizer: Any, encoder: Any, captions: Sequence[str], clip_skip: int, *, max_tokens: int = TOKENS - 2
) -> Tensor:
    """Encode captions as the U-Net reads them.

    Args:
        clip_skip: 1: the last layer's states; 2: those of the one before; …
        max_tokens: 75, 150 or 225. What is longer than 75 is encoded in parts, each with a begin and an end token, of
            which the first and the last stay: kohya's --max_token_length.

    Returns: [captions, max_tokens + 2, width] fp32, where the encoder is.
    """
    how = {"padding": "max_length", "max_length": max_tokens + 2, "truncation": True, "return_tensors": "pt"}
    ids = tokenizer(list(captions), **how).input_ids
    if max_tokens == TOKENS - 2:
        return _encoded(encoder, ids, clip_skip)
    import torch

    ends = ids[:, :1], ids[:, -1:]
    parts = [torch.cat([ends[0], part, ends[1]], dim=1) for part in ids[:, 1:-1].split(TOKENS - 2, dim=1)]
    states = [_encoded(encoder, part, clip_skip) for part in parts]
    return torch.cat([states[0][:, :1], *(part[:, 1:-1] for part in states), states[-1][:, -1:]], dim=1)


def _encoded(encoder: Any, ids: Tensor, clip_skip: int) -> Tensor:
    """Return the states [n, 77, width] fp32 of token numbers [n, 77]."""
    found = encoder(ids.to(encoder.device), output_hidden_states=clip_skip > 1)
    if clip_skip == 1:
        return found.last_hidden_state.float()
    # the last layer's own norm stays, as A1111, kohya and diffusers have it; transformers 5.6 dropped a level
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    return norm(found.hidden_states[-clip_skip]).float()


def longer_than(tokenizer: Any, captions: Sequence[str], max_tokens: int) -> list[str]:
    """Return the captions that `text_states` would cut."""
    ids = tokenizer(list(captions), add_special_tokens=False, verbose=False).input_ids if captions else []
    return [caption for caption, found in zip(captions, ids, strict=True) if len(found) > max_tokens]
