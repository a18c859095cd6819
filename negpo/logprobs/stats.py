"""Per-token statistics for evaluation harnesses: one pass serves probability, memorisation and min-k metrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from negpo.logprobs.head import HeadSpec
from negpo.logprobs.model import check_vocabulary, choose_layout, run_with_head, sorted_targets, spread
from negpo.logprobs.products import Products
from negpo.logprobs.softmax import RunningSoftmax
from negpo.logprobs.tiles import LogitMap, TiledHead, label_overlap, label_rows

# min-k++ (arXiv 2404.02936) as open-unlearning computes it keeps the variance away from zero by this much.
MIN_VARIANCE = 1e-6


@dataclass(frozen=True)
class TokenStats:
    """Row t scores ``labels[:, t + 1]``; all (B, T-1), zeros and False where ``mask`` is False.

    logps: log p(label). correct: the label is the argmax. mean: Σ p log p over the vocabulary. std: square root of the
    population variance Σ p (log p)² - mean², at least sqrt(1e-6). Floats are float32, logs natural.
    """

    logps: Tensor
    mask: Tensor
    correct: Tensor
    mean: Tensor
    std: Tensor


@torch.no_grad()
def model_token_stats(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor,
    *,
    packing: str = "auto",
    tile_bytes: int | None = None,
) -> TokenStats:
    """Statistics of all labelled tokens; arguments as in ``model_token_logprobs``. Never differentiable."""
    labels = labels[:, 1:]
    mask = labels != -100
    layout = choose_layout(model, input_ids, attention_mask, nn.functional.pad(mask, (0, 1)), packing)
    flat, targets, order = sorted_targets(layout, labels, mask)

    def head_function(hidden: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
        check_vocabulary(targets, head)
        states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, flat)
        return token_stats(states, head.weight, head.bias, targets, head.logit_map(), tile_bytes, head.products)

    logps, correct, mean, std = (spread(part, order, mask) for part in run_with_head(model, layout, head_function))
    return TokenStats(logps, mask, correct, mean, std)


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    logit_map: LogitMap,
    tile_bytes: int | None = None,
    products: Products | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logps, correct, mean, std), each (n,), for states (n, H) and *ascending* labels (n,).

    Where several entries share the largest logit the first one counts as the argmax, as in ``torch.argmax``.
    """
    head = TiledHead(hidden, weight, bias, logit_map, tile_bytes, products)
    label_logit = head.new_zeros(head.n)
    running = RunningSoftmax(label_logit, moments=2)
    best = torch.zeros_like(labels)
    bounds = label_rows(labels, head)
    for columns, weight_tile in head.vocab_tiles():
        for rows in head.token_tiles():
            tile = head.logits(rows, columns, weight_tile)
            inside = label_overlap(bounds, rows, columns, head)
            if inside is not None:
                ids = labels[rows][inside] - columns.start
                label_logit[rows][inside] = tile[inside].gather(1, ids.unsqueeze(1)).squeeze(1)
            largest, where = tile.max(1)
            best[rows] = torch.where(largest > running.peak[rows], where + columns.start, best[rows])
            running.update(rows, tile)
    logps = (label_logit - running.log_z()).clamp_(max=0.0)
    return logps, best == labels, -running.entropy(), running.variance().clamp_(min=MIN_VARIANCE).sqrt_()
