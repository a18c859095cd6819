"""KL(reference || policy) over the whole vocabulary, streamed: the retain term ``kl`` of unlearning trainers.

Per position, with logits z (policy) and r (reference), p = softmax(z), q = softmax(r):

    KL(q || p) = E_q[r - z] - log Z_r + log Z_z,     dKL/dz = p - q

``negpo.objectives.retain_kl`` is the definition on full log-probabilities. Where policy and reference are equal the
value and its gradient are exactly 0.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from negpo.logprobs.head import HeadSpec, head_of
from negpo.logprobs.model import choose_layout, eval_mode, run_with_head, supports_packing
from negpo.logprobs.products import Products, autocast_dtype
from negpo.logprobs.softmax import RunningSoftmax
from negpo.logprobs.tiles import HeadGradient, TiledHead, full, gathered, no_autocast


def streamed_kl(
    policy_hidden: Tensor,
    policy_head: HeadSpec | Tensor,
    ref_hidden: Tensor,
    ref_head: HeadSpec | Tensor,
    mask: Tensor | None = None,
    *,
    tile_bytes: int | None = None,
) -> Tensor:
    """Mean over positions of KL(ref || policy), a scalar, without either (positions, V) matrix.

    policy_hidden: (..., H); ref_hidden: (..., H') with the same leading shape; heads: :class:`HeadSpec` or a bare
    weight (V, H). mask: bool of the leading shape, True where a position counts; None counts all. No gradient reaches
    the reference. float32 (float64 for float64 ``policy_hidden``).

    Raises ValueError for shapes that do not fit and for a mask without True.
    """
    policy, ref = _spec(policy_head), _spec(ref_head)
    products = policy.products or Products.choose(policy_hidden, autocast_dtype(policy_hidden.device))
    if policy_hidden.shape[:-1] != ref_hidden.shape[:-1]:
        raise ValueError(
            f"policy and reference states must cover the same positions, got {tuple(policy_hidden.shape)} and "
            f"{tuple(ref_hidden.shape)}"
        )
    states, ref_states = policy_hidden.flatten(0, -2), ref_hidden.flatten(0, -2)
    if mask is not None:
        if mask.shape != policy_hidden.shape[:-1]:
            raise ValueError(f"mask must be {tuple(policy_hidden.shape[:-1])}, got {tuple(mask.shape)}")
        index = mask.reshape(-1).bool().nonzero().squeeze(1)
        states, ref_states = states.index_select(0, index), ref_states.index_select(0, index)
    if states.shape[0] == 0:
        raise ValueError("no position to average over: the mask is False everywhere")
    with gathered(policy.weight, policy.bias, ref.weight, ref.bias), no_autocast(states.device):
        if policy.weight.shape[0] != ref.weight.shape[0]:
            raise ValueError(
                f"policy and reference must share a vocabulary, their heads have {policy.weight.shape[0]} and "
                f"{ref.weight.shape[0]} rows"
            )
        return _StreamedKL.apply(
            states, policy.weight, policy.bias, ref_states.detach(), policy, ref, tile_bytes, products
        )


def retain_kl_from_models(
    model: nn.Module,
    ref_model: nn.Module | None,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    packing: str = "auto",
    tile_bytes: int | None = None,
) -> Tensor:
    """KL(reference || model), mean over positions, for a batch (B, T); gradient to ``model`` only.

    ``ref_model`` None takes the model itself with its PEFT adapters disabled; the reference runs without dropout.
    ``mask`` (B, T) bool marks the positions that count, by the state that stands there (not shifted). None counts every
    position, padding included, as the released code of arXiv 2404.05868 does, and then nothing can be packed away; pass
    ``attention_mask.bool()`` for the mean over real tokens, which is faster.
    """
    needed = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    reference = model if ref_model is None else ref_model
    if mask is None or not supports_packing(reference):
        packing = "padded"
    layout = choose_layout(model, input_ids, attention_mask, needed, packing)
    adapters_off = nullcontext() if ref_model is not None else _peft_model(model).disable_adapter()
    with torch.no_grad(), adapters_off, eval_mode(reference):
        ref_hidden = run_with_head(reference, layout, lambda hidden, _: (hidden,))[0]
        ref_head = head_of(reference)
    index = layout.place[needed]
    ref_states = ref_hidden.reshape(-1, ref_hidden.shape[-1]).index_select(0, index)

    def head_function(hidden: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
        states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
        return (streamed_kl(states, head, ref_states.to(states.device), ref_head, tile_bytes=tile_bytes),)

    return run_with_head(model, layout, head_function)[0]


def _peft_model(model: Any) -> Any:
    while not hasattr(model, "disable_adapter"):
        if not isinstance(getattr(model, "module", None), nn.Module):
            raise ValueError(f"{type(model).__name__} has no PEFT adapters to disable; pass a reference model")
        model = model.module
    return model


def _spec(head: HeadSpec | Tensor) -> HeadSpec:
    if isinstance(head, HeadSpec):
        return replace(head, weight=full(head.weight), bias=full(head.bias))
    return HeadSpec(full(head))


class _StreamedKL(torch.autograd.Function):
    """Two passes over the tiles: log Z of both models and the KL forward, (p - q) / n backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ref_hidden: Tensor,
        policy: HeadSpec,
        ref: HeadSpec,
        tile_bytes: int | None,
        products: Products,
    ) -> Tensor:
        ctx.policy, ctx.ref, ctx.tile_bytes, ctx.products = policy, ref, tile_bytes, products
        heads = _heads(hidden, weight, bias, ref_hidden, policy, ref, tile_bytes, products)
        kl, log_z, ref_log_z = _kl(*heads)
        ctx.save_for_backward(hidden, weight, bias, ref_hidden, log_z, ref_log_z)
        return kl.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ref_hidden, log_z, ref_log_z = ctx.saved_tensors
        with gathered(weight, bias, ctx.ref.weight, ctx.ref.bias), no_autocast(hidden.device):
            heads = _heads(hidden, weight, bias, ref_hidden, ctx.policy, ctx.ref, ctx.tile_bytes, ctx.products)
            grads = _kl_backward(*heads, log_z, ref_log_z, grad / hidden.shape[0], ctx.needs_input_grad)
        return None if grads[0] is None else grads[0].to(hidden.dtype), *grads[1:], *(None,) * 5


def _heads(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ref_hidden: Tensor,
    policy: HeadSpec,
    ref: HeadSpec,
    tile_bytes: int | None,
    products: Products,
) -> tuple[TiledHead, TiledHead]:
    return (
        TiledHead(hidden, weight, bias, policy.logit_map(), tile_bytes, products),
        TiledHead(ref_hidden, ref.weight, ref.bias, ref.logit_map(), tile_bytes, products),
    )


def _kl(head: TiledHead, ref: TiledHead) -> tuple[Tensor, Tensor, Tensor]:
    """(KL, log Z of the policy, log Z of the reference), each (n,)."""
    gap = head.new_zeros(head.n)  # Σ exp(r - peak) (r - z)
    running, ref_running = RunningSoftmax(gap), RunningSoftmax(gap)
    for (columns, weight_tile), (_, ref_tile) in zip(head.vocab_tiles(), ref.vocab_tiles(), strict=True):
        for rows in head.token_tiles():
            logits = head.logits(rows, columns, weight_tile)
            ref_logits = ref.logits(rows, columns, ref_tile)
            difference = ref_logits - logits
            running.update(rows, logits)
            weights, shrink = ref_running.update(rows, ref_logits)
            gap[rows] = gap[rows] * shrink + difference.mul_(weights).sum(1)
    log_z, ref_log_z = running.log_z(), ref_running.log_z()
    return gap / ref_running.total + (log_z - ref_log_z), log_z, ref_log_z


def _kl_backward(
    head: TiledHead, ref: TiledHead, log_z: Tensor, ref_log_z: Tensor, scale: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``scale * (p - q)`` on the logits, carried to hidden, weight and bias of the policy."""
    grad_hidden = head.new_zeros(*head.hidden.shape) if needs[0] else None
    gradient = HeadGradient(head, needs_weight=needs[1], needs_bias=needs[2])
    scale = scale * head.logit_map.factor
    for (columns, weight_tile), (_, ref_tile) in zip(head.vocab_tiles(), ref.vocab_tiles(), strict=True):
        for rows in head.token_tiles():
            logits = head.logits(rows, columns, weight_tile)
            slope = head.logit_map.cap_slope(logits)
            q = ref.logits(rows, columns, ref_tile).sub_(ref_log_z[rows].unsqueeze(1)).exp_()
            grad_tile = logits.sub_(log_z[rows].unsqueeze(1)).exp_().sub_(q).mul_(scale)
            if slope is not None:
                grad_tile.mul_(slope)
            if grad_hidden is not None:
                head.products.addmm_(grad_hidden[rows], head.products.factor(grad_tile), weight_tile)
            gradient.add(rows, columns, grad_tile)
        gradient.finish(columns)
    return grad_hidden, gradient.weight, gradient.bias
