"""A streamed statistic of a whole model's tokens, beside their log-probabilities, through one forward."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from negpo.logprobs.core import score_tokens
from negpo.logprobs.head import HeadSpec, head_of
from negpo.logprobs.kl import _peft_model
from negpo.logprobs.model import (
    check_vocabulary,
    choose_layout,
    eval_mode,
    run_with_head,
    sorted_targets,
    spread,
    supports_packing,
)
from negpo.logprobs.statistics import Statistic, token_statistic


@dataclass(frozen=True)
class StatisticBatch:
    """``logps``, ``mask`` (B, T-1) as in :class:`negpo.logprobs.LogprobBatch`; ``value`` and ``constant`` (B, T).

    ``value[:, t]`` belongs to the *state* at t, which predicts token t + 1; 0 where ``positions`` was False.
    """

    logps: Tensor
    mask: Tensor
    value: Tensor
    constant: Tensor | None


def model_token_statistic(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor,
    statistic: Statistic,
    *,
    positions: Tensor | None = None,
    ref_model: nn.Module | None = None,
    packing: str = "auto",
    tile_bytes: int | None = None,
) -> StatisticBatch:
    """Log-probabilities of all labelled tokens and ``statistic`` at ``positions``, both differentiable.

    positions: (B, T) bool, the states whose next token's distribution is measured; None: those that predict a label.
    The label of position t is ``labels[:, t + 1]``; where that is -100 or does not exist it counts as token 0, so such
    positions suit a statistic that does not look at the label (``Spread``). ``ref_model``: the reference of a statistic
    that uses one; None takes the model itself with its PEFT adapters disabled. It runs in eval mode, without gradient.
    """
    shifted = labels[:, 1:]
    mask = shifted != -100
    predicts = nn.functional.pad(mask, (0, 1))
    positions = predicts if positions is None else positions
    needed = predicts | positions
    if statistic.uses_reference and not supports_packing(model if ref_model is None else ref_model):
        packing = "padded"
    layout = choose_layout(model, input_ids, attention_mask, needed, packing)
    index = layout.place[positions]
    ref_states, ref_head = None, None
    if statistic.uses_reference:
        reference = model if ref_model is None else ref_model
        adapters_off = nullcontext() if ref_model is not None else _peft_model(model).disable_adapter()
        with torch.no_grad(), adapters_off, eval_mode(reference):
            hidden = run_with_head(reference, layout, lambda hidden, _: (hidden,))[0]
            ref_head = head_of(reference)
        ref_states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
    next_labels = nn.functional.pad(shifted.clamp(min=0), (0, 1))[positions]
    flat, targets, order = sorted_targets(layout, labels[:, 1:], mask)

    def head_function(hidden: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
        check_vocabulary(targets, head)
        states = hidden.reshape(-1, hidden.shape[-1])
        logps = score_tokens(
            states.index_select(0, flat), head.weight, head.bias, targets, head.logit_map(), False, tile_bytes
        )[0]
        chosen = states.index_select(0, index)
        ref = None if ref_states is None else ref_states.to(states.device)
        value, constant = token_statistic(
            statistic, chosen, head, next_labels, ref_hidden=ref, ref_head=ref_head, tile_bytes=tile_bytes
        )
        return (logps, value) if constant is None else (logps, value, constant)

    scores = run_with_head(model, layout, head_function)
    places = positions.reshape(-1).nonzero().squeeze(1)
    values = [spread(part, places, positions) for part in scores[1:]]
    return StatisticBatch(spread(scores[0], order, mask), mask, values[0], values[1].detach() if values[1:] else None)
