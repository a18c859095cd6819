"""Drawing tokens from logits: one uniform number per (sample, step), inverted through the cumulative distribution.

The uniforms of a sample come from a counter-based generator keyed by its own seed, so they depend neither on the batch
nor on the other samples. The logits do, in the last bits: matrix products round differently in batches of different
shape. A draw whose uniform falls within that rounding of a boundary (about 1e-7 per token in float32) can therefore
differ between batchings; everything else is identical, and equal batching is bit-identical on the same machine.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from negpo.rollout.base import Sampling


def uniforms(seed: int, count: int) -> np.ndarray:
    """(count,) float64 in (0, 1). A longer draw starts with the shorter one, so `max_new_tokens` changes no token."""
    raw = np.random.Philox(key=seed).random_raw(count)
    # 40 bits, centred in their cells: never 0 or 1, and u * total stays below total after rounding.
    return ((raw >> np.uint64(24)).astype(np.float64) + 0.5) * 2.0**-40


def draw(logits: Tensor, uniform: Tensor | None, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Choose one token per row.

    Args:
        logits: (B, V) float32.
        uniform: (B,) float64 in (0, 1); not read when greedy.

    Returns:
        tokens (B,) int64 and their log-probs (B,) float32 under softmax(logits / temperature), untruncated.
    """
    if sampling.greedy:
        tokens = logits.argmax(-1)
        return tokens, _chosen_logprobs(logits, tokens)
    if uniform is None:
        raise ValueError("sampling needs one uniform number per row")
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    kept, ids = _truncate(logits, sampling)
    cumulative = torch.softmax(kept, -1).double().cumsum(-1)
    place = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    place = place.clamp_max(cumulative.shape[-1] - 1)  # NaN rows would point behind the vocabulary
    tokens = (place if ids is None else ids.gather(-1, place)).squeeze(-1)
    return tokens, _chosen_logprobs(logits, tokens)


def _chosen_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[:, None]).squeeze(-1) - torch.logsumexp(logits, -1)


def _truncate(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits with the excluded tokens at -inf, sorted when sorting was needed, and the token ids behind the columns."""
    if not sampling.truncates:
        return logits, None
    if sampling.min_p > 0:
        floor = logits.amax(-1, keepdim=True) + float(np.log(sampling.min_p))
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if sampling.top_k > 0:
        logits, ids = torch.topk(logits, min(sampling.top_k, logits.shape[-1]))
    elif sampling.top_p < 1:
        logits, ids = logits.sort(-1, descending=True)
    else:
        return logits, None
    if sampling.top_p < 1:
        probs = torch.softmax(logits, -1)
        mass_before = probs.cumsum(-1) - probs
        logits = logits.masked_fill(mass_before >= sampling.top_p, -torch.inf)
    return logits, ids
