"""Attention for decoding steps that reads grouped key-value heads once instead of copying them per query head.

With one new token per row, the query heads that share a key-value head can stand in the query-length dimension: the
same products, no repeated cache. On two CPU cores this is most of a decoding step of a small model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "negpo_grouped"


def grouped_decode_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """`sdpa_attention_forward` for query (B, heads, 1, d) and key, value (B, groups, T, d); anything else is passed on.

    Returns (B, 1, heads, d).
    """
    rows, heads, new, width = query.shape
    groups = key.shape[1]
    if new != 1 or heads == groups or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    attended = nn.functional.scaled_dot_product_attention(
        query.view(rows, groups, heads // groups, width),
        key,
        value,
        attn_mask=attention_mask,  # (B, 1, 1, T) or None: the same for every head, so it broadcasts over the groups
        scale=kwargs.get("scaling"),
    )
    return attended.reshape(rows, 1, heads, attended.shape[-1]), None


@contextlib.contextmanager
def grouped_attention(config: Any) -> Iterator[None]:
    """Switch a text config from "sdpa" to grouped decoding and back; other implementations are left alone."""
    if config._attn_implementation != "sdpa":
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


AttentionInterface.register(NAME, grouped_decode_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
