"""Log-probabilities of given tokens under a language-model head, without the (tokens, vocabulary) matrix.

For token t with hidden state h, label y and logits z = map(W h + b):

    log p(y) = z_y - log Z,           log Z = logsumexp(z)
    d log p(y) / dz = onehot(y) - p,  p = exp(z - log Z)

Labelled tokens are compacted, sorted by label (each vocabulary tile then owns a contiguous range of labels) and walked
in tiles. Two plans, the cheaper one is taken:

* head trained: the forward keeps log Z; the backward recomputes each tile of z once, turns it into the logit gradient
  in place and feeds both gradient products. Four matrix products of n·H·V in all.
* head frozen (LoRA, unlearning of selected parameters): d log p / dh = W[y] - E_p[W] has a scalar upstream gradient per
  token, so the forward accumulates E_p[W] with running rescaling and the backward is one multiplication. Two products
  instead of three, and the backward never touches the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from negpo.logprobs.softmax import RunningSoftmax
from negpo.logprobs.tiles import (
    HeadGradient,
    LogitMap,
    TiledHead,
    compute_dtype,
    full,
    gathered,
    label_overlap,
    label_rows,
    no_autocast,
)


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = False,
    tile_bytes: int | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Per-token log-probabilities; the only place where the vocabulary dimension exists.

    Args:
        hidden: (B, T, H), floating; ``hidden[:, t]`` is the state that *predicts* ``labels[:, t]`` (the caller shifts).
        lm_head_weight: (V, H), may be frozen, a ZeRO-3 shard or a DTensor.
        labels: (B, T) int64; anything may stand where ``mask`` is False.
        mask: (B, T) bool, True where a log-probability is wanted. Other positions are never computed.
        bias: (V,) or None.
        temperature: logits are divided by it, after scaling and soft-capping.
        logit_scale: multiplies the projection (Granite's ``logits_scaling`` divides: pass its inverse).
        softcap: ``softcap * tanh(z / softcap)`` of Gemma 2, after scaling; None for off.
        return_entropy: also return the entropy (B, T) in nats of each next-token distribution, differentiable too.
        tile_bytes: largest tile of float32 logits; None chooses by device.
        backend: "auto", "torch" (the tiles here) or "trl" (TRL's kernel, which is faster on CUDA and chosen there).

    Returns:
        (B, T) float32 (float64 for float64 ``hidden``), exactly 0 where ``mask`` is False; with ``return_entropy`` a
        pair. All-False masks give zeros that still backpropagate zeros.

    Raises:
        ValueError: shapes that do not fit, a label outside [0, V) under the mask, an unknown backend.
    """
    logit_map = LogitMap(logit_scale, softcap, temperature)
    weight, bias = full(lm_head_weight), full(bias)
    with gathered(weight, bias), no_autocast(hidden.device):
        _check_shapes(hidden, weight, bias, labels, mask)
        index = mask.reshape(-1).bool().nonzero().squeeze(1)
        picked = labels.reshape(-1)[index]
        _check_labels(picked, weight.shape[0])
        picked, order = picked.sort()
        index = index[order]
        states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
        scores = score_tokens(states, weight, bias, picked, logit_map, return_entropy, tile_bytes, backend)
    spread = [part.new_zeros(labels.numel()).index_copy(0, index, part).view(labels.shape) for part in scores]
    return (spread[0], spread[1]) if return_entropy else spread[0]


def score_tokens(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    logit_map: LogitMap,
    return_entropy: bool = False,
    tile_bytes: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """``(logps,)`` or ``(logps, entropy)``, each (n,), for compacted states (n, H) and *ascending* labels (n,)."""
    if backend not in ("auto", "torch", "trl"):
        raise ValueError(f"backend must be 'auto', 'torch' or 'trl', got {backend!r}")
    if backend == "trl" or (backend == "auto" and _prefers_trl(hidden)):
        from negpo.compat import trl_token_logprobs

        return trl_token_logprobs(hidden, weight, bias, labels, logit_map, return_entropy)
    if not torch.is_grad_enabled():
        head = TiledHead(hidden.to(compute_dtype(hidden)), weight, bias, logit_map, tile_bytes)
        logps, entropy, _, _ = _forward(head, labels, return_entropy, direction=False)
        return (logps,) if entropy is None else (logps, entropy)
    logps, entropy = _TokenLogprobs.apply(hidden, weight, bias, labels, logit_map, return_entropy, tile_bytes)
    return (logps, entropy) if return_entropy else (logps,)


def _prefers_trl(hidden: Tensor) -> bool:
    if not hidden.is_cuda or hidden.dtype == torch.float64:
        return False
    from negpo.compat import has_trl_kernel

    return has_trl_kernel()


class _TokenLogprobs(torch.autograd.Function):
    """Forward and backward of :func:`score_tokens`; see the module docstring for the two plans."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        logit_map: LogitMap,
        return_entropy: bool,
        tile_bytes: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head = TiledHead(hidden.to(compute_dtype(hidden)), weight, bias, logit_map, tile_bytes)
        direct = needs_hidden and not (needs_weight or needs_bias)
        logps, entropy, log_z, direction = _forward(head, labels, return_entropy, direct)
        # The direction alone is enough for a frozen head, unless a gradient may also arrive through the entropy.
        inputs = (None,) * 4 if direct and not return_entropy else (hidden, weight, bias, labels)
        ctx.save_for_backward(*inputs, log_z, entropy, direction)
        ctx.logit_map, ctx.tile_bytes, ctx.hidden_dtype = logit_map, tile_bytes, hidden.dtype
        return logps, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, log_z, entropy, direction = ctx.saved_tensors
        if grad_logps is None and grad_entropy is None:
            return (None,) * 7
        if direction is not None and grad_logps is not None and grad_entropy is None:
            return (direction * grad_logps.unsqueeze(1)).to(ctx.hidden_dtype), *(None,) * 6
        factor = ctx.logit_map.factor  # dz/du, folded into the upstream gradients
        g = torch.zeros_like(log_z) if grad_logps is None else grad_logps * factor
        tokens = _Tokens(labels, log_z, entropy, g, None if grad_entropy is None else grad_entropy * factor)
        with gathered(weight, bias), no_autocast(hidden.device):
            head = TiledHead(hidden.to(log_z.dtype), weight, bias, ctx.logit_map, ctx.tile_bytes)
            grads = _backward(head, tokens, ctx.needs_input_grad)
        grad_hidden = None if grads[0] is None else grads[0].to(ctx.hidden_dtype)
        return grad_hidden, *grads[1:], *(None,) * 4


def _forward(
    head: TiledHead, labels: Tensor, return_entropy: bool, direction: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """(logps, entropy, log Z, d logps / d hidden), each over n tokens, from one pass over the tiles."""
    running = RunningSoftmax(head.hidden, moments=int(return_entropy))
    label_logit = head.hidden.new_zeros(head.n)
    mean_row = torch.zeros_like(head.hidden) if direction else None
    bounds = label_rows(labels, head)
    for columns, weight_tile in head.vocab_tiles():
        for rows in head.token_tiles():
            tile = head.logits(rows, columns, weight_tile)
            inside = label_overlap(bounds, rows, columns, head)
            if inside is not None:
                ids = labels[rows][inside] - columns.start
                label_logit[rows][inside] = tile[inside].gather(1, ids.unsqueeze(1)).squeeze(1)
            slope = head.logit_map.cap_slope(tile) if direction else None
            exponentials, shrink = running.update(rows, tile)
            if mean_row is not None:
                weights = exponentials if slope is None else exponentials.mul_(slope)
                mean_row[rows].mul_(shrink.unsqueeze(1)).addmm_(weights, weight_tile)
    log_z = running.log_z()
    # A label that holds all the mass may round to a hair above 0; log-probabilities never are.
    logps = (label_logit - log_z).clamp_(max=0.0)
    if mean_row is not None:
        mean_row = _direction(head, labels, label_logit, mean_row.div_(running.total.unsqueeze(1)))
    return logps, running.entropy() if return_entropy else None, log_z, mean_row


def _direction(head: TiledHead, labels: Tensor, label_logit: Tensor, mean_row: Tensor) -> Tensor:
    """``factor * (slope_y * W[y] - E_p[slope * W])``, (n, H): the gradient of log p(y) in the hidden state."""
    own_row = head.weight.index_select(0, labels).to(mean_row.dtype)
    slope = head.logit_map.cap_slope(label_logit)
    if slope is not None:
        own_row *= slope.unsqueeze(1)
    return mean_row.neg_().add_(own_row).mul_(head.logit_map.factor)


@dataclass(frozen=True)
class _Tokens:
    """What the backward knows per token: label, log Z, entropy H, and the gradients g of log p and e of H; all (n,)."""

    labels: Tensor
    log_z: Tensor
    entropy: Tensor | None
    g: Tensor
    e: Tensor | None

    def alive(self) -> Tensor:
        """Indices of tokens with a gradient. Zero upstream gradients are common (clipped or dead rows)."""
        return ((self.g != 0) if self.e is None else (self.g != 0) | (self.e != 0)).nonzero().squeeze(1)

    def take(self, index: Tensor) -> _Tokens:
        entropy = None if self.entropy is None else self.entropy[index]
        e = None if self.e is None else self.e[index]
        return _Tokens(self.labels[index], self.log_z[index], entropy, self.g[index], e)

    def softmax_gradient_(self, tile: Tensor, rows: slice) -> Tensor:
        """Overwrites logits (rows, columns) with -g p - e p (log p + H), the gradient without the labels' own +g."""
        g = self.g[rows].unsqueeze(1)
        log_p = tile.sub_(self.log_z[rows].unsqueeze(1))
        if self.e is None or self.entropy is None:
            return log_p.exp_().mul_(-g)
        pull = (log_p + self.entropy[rows].unsqueeze(1)).mul_(self.e[rows].unsqueeze(1)).add_(g)
        return log_p.exp_().mul_(pull.neg_())


def _backward(
    head: TiledHead, tokens: _Tokens, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for hidden, weight and bias; each None where ``needs`` says so, and then not computed."""
    grad_hidden = torch.zeros_like(head.hidden) if needs[0] else None
    alive = tokens.alive()
    if alive.numel() < head.n:
        part, grad_weight, grad_bias = _backward(head.take(alive), tokens.take(alive), needs)
        if grad_hidden is not None and part is not None:
            grad_hidden.index_copy_(0, alive, part)
        return grad_hidden, grad_weight, grad_bias
    gradient = HeadGradient(head, needs_weight=needs[1], needs_bias=needs[2])
    own = tokens.g.clone()  # dL/du of the label itself, apart from the softmax
    bounds = label_rows(tokens.labels, head)
    for columns, weight_tile in head.vocab_tiles():
        for rows in head.token_tiles():
            tile = head.logits(rows, columns, weight_tile)
            slope = head.logit_map.cap_slope(tile)
            grad_tile = tokens.softmax_gradient_(tile, rows)
            if slope is not None:
                grad_tile.mul_(slope)
            if grad_hidden is not None:
                grad_hidden[rows].addmm_(grad_tile, weight_tile)
            inside = label_overlap(bounds, rows, columns, head)
            if inside is not None:
                ids = (tokens.labels[rows][inside] - columns.start).unsqueeze(1)
                if slope is not None:
                    own[rows][inside] *= slope[inside].gather(1, ids).squeeze(1)
                grad_tile[inside].scatter_add_(1, ids, own[rows][inside].unsqueeze(1))
            gradient.add(rows, columns, grad_tile)
        gradient.finish(columns)
    if grad_hidden is not None:
        # Added last: the label's row is large, and every later addition of a small tile would be rounded against it.
        own_row = head.weight.index_select(0, tokens.labels).to(grad_hidden.dtype)
        grad_hidden.addcmul_(own_row, own.unsqueeze(1))
    return grad_hidden, gradient.weight, gradient.bias


def _check_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, mask: Tensor) -> None:
    if hidden.dim() < 2 or hidden.shape[:-1] != labels.shape or labels.shape != mask.shape:
        raise ValueError(
            "hidden must be (..., H) with labels and mask of its leading shape; got hidden "
            f"{tuple(hidden.shape)}, labels {tuple(labels.shape)}, mask {tuple(mask.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"lm_head_weight must be (V, {hidden.shape[-1]}) to fit hidden, got {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise ValueError(
            f"lm_head_weight must be floating point (a quantised head is not supported), got {weight.dtype}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},) to fit lm_head_weight, got {tuple(bias.shape)}")


def _check_labels(labels: Tensor, vocab: int) -> None:
    bad = labels[(labels < 0) | (labels >= vocab)]
    if bad.numel():
        raise ValueError(
            f"{bad.numel()} labels under mask == True lie outside the vocabulary [0, {vocab}), the first is "
            f"{bad[0].item()}; mask them, or check that tokenizer and model fit"
        )
