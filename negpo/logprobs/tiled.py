"""Log-probabilities in vocabulary tiles: the plan of CPUs, and of accelerators without Triton.

Labelled tokens come sorted by label (each vocabulary tile then owns a contiguous range of labels) and are walked in
tiles that stay in cache. Two ways, the cheaper one is taken:

* head trained: the forward keeps log Z; the backward recomputes each tile of z once, turns it into the logit gradient
  in place and feeds both gradient products. Four matrix products of n·H·V in all.
* head frozen (LoRA, unlearning of selected parameters): d log p / dh = W[y] - E_p[W] has a scalar upstream gradient per
  token, so the forward accumulates E_p[W] with running rescaling and the backward is one multiplication. Two products
  instead of three, and the backward never touches the vocabulary.

The label's own row never goes through the product of hidden gradients: its coefficient 1 - p(y) is one number, and
summing 1 and p(y) apart would leave their rounding (2^-9 in bfloat16) where the model is sure and the gradient small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from negpo.logprobs.products import Products
from negpo.logprobs.softmax import RunningSoftmax
from negpo.logprobs.tiles import (
    HeadGradient,
    LogitMap,
    TiledHead,
    gathered,
    label_overlap,
    label_rows,
    no_autocast,
)


def tiled_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    logit_map: LogitMap,
    return_entropy: bool,
    tile_bytes: int | None,
    products: Products,
) -> tuple[Tensor, Tensor | None]:
    """(logps, entropy or None), each (n,), for states (n, H) and *ascending* labels (n,)."""
    if torch.is_grad_enabled():
        return _TiledLogprobs.apply(hidden, weight, bias, labels, logit_map, return_entropy, tile_bytes, products)
    head = TiledHead(hidden, weight, bias, logit_map, tile_bytes, products)
    return _forward(head, labels, return_entropy, direction=False)[:2]


class _TiledLogprobs(torch.autograd.Function):
    """Forward and backward; see the module docstring for the two ways."""

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
        products: Products,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head = TiledHead(hidden, weight, bias, logit_map, tile_bytes, products)
        direct = needs_hidden and not (needs_weight or needs_bias)
        logps, entropy, log_z, direction = _forward(head, labels, return_entropy, direct)
        # The direction alone is enough for a frozen head, unless a gradient may also arrive through the entropy.
        inputs = (None,) * 4 if direct and not return_entropy else (hidden, weight, bias, labels)
        ctx.save_for_backward(*inputs, log_z, entropy, direction)
        ctx.logit_map, ctx.tile_bytes, ctx.products, ctx.hidden_dtype = logit_map, tile_bytes, products, hidden.dtype
        return logps, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, log_z, entropy, direction = ctx.saved_tensors
        if grad_logps is None and grad_entropy is None:
            return (None,) * 8
        if direction is not None and grad_logps is not None and grad_entropy is None:
            return (direction * grad_logps.unsqueeze(1)).to(ctx.hidden_dtype), *(None,) * 7
        factor = ctx.logit_map.factor  # dz/du, folded into the upstream gradients
        g = torch.zeros_like(log_z) if grad_logps is None else grad_logps * factor
        tokens = Upstream(labels, log_z, entropy, g, None if grad_entropy is None else grad_entropy * factor)
        with gathered(weight, bias), no_autocast(hidden.device):
            head = TiledHead(hidden, weight, bias, ctx.logit_map, ctx.tile_bytes, ctx.products)
            grads = _backward(head, tokens, ctx.needs_input_grad)
        grad_hidden = None if grads[0] is None else grads[0].to(ctx.hidden_dtype)
        return grad_hidden, *grads[1:], *(None,) * 5


def _forward(
    head: TiledHead, labels: Tensor, return_entropy: bool, direction: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """(logps, entropy, log Z, d logps / d hidden), each over n tokens, from one pass over the tiles."""
    label_logit = head.new_zeros(head.n)
    running = RunningSoftmax(label_logit, moments=int(return_entropy))
    other_rows = head.new_zeros(*head.hidden.shape) if direction else None  # Σ over j != y of exp(z_j - peak) W[j]
    bounds = label_rows(labels, head)
    for columns, weight_tile in head.vocab_tiles():
        for rows in head.token_tiles():
            tile = head.logits(rows, columns, weight_tile)
            inside = label_overlap(bounds, rows, columns, head)
            ids = None if inside is None else (labels[rows][inside] - columns.start).unsqueeze(1)
            if ids is not None:
                label_logit[rows][inside] = tile[inside].gather(1, ids).squeeze(1)
            slope = head.logit_map.cap_slope(tile) if direction else None
            exponentials, shrink = running.update(rows, tile)
            if other_rows is not None:
                weights = exponentials if slope is None else exponentials.mul_(slope)
                if ids is not None:
                    weights[inside].scatter_(1, ids, 0.0)
                others = other_rows[rows].mul_(shrink.unsqueeze(1))
                head.products.addmm_(others, head.products.factor(weights), weight_tile)
    log_z = running.log_z()
    # A label that holds all the mass may round to a hair above 0; log-probabilities never are.
    logps = (label_logit - log_z).clamp_(max=0.0)
    if other_rows is not None:
        other_rows = _direction(head, labels, label_logit, logps, other_rows.div_(running.total.unsqueeze(1)))
    return logps, running.entropy() if return_entropy else None, log_z, other_rows


def _direction(head: TiledHead, labels: Tensor, label_logit: Tensor, logps: Tensor, other_rows: Tensor) -> Tensor:
    """``factor * (slope_y (1 - p_y) W[y] - Σ over j != y of p_j slope_j W[j])``, (n, H): d log p(y) / d hidden."""
    coefficient = -logps.expm1()
    slope = head.logit_map.cap_slope(label_logit)
    if slope is not None:
        coefficient *= slope
    own_row = head.weight.index_select(0, labels).to(other_rows.dtype)
    return other_rows.neg_().addcmul_(own_row, coefficient.unsqueeze(1)).mul_(head.logit_map.factor)


@dataclass(frozen=True)
class Upstream:
    """What the backward knows per token: label, log Z, entropy H, and the gradients g of log p and e of H; all (n,)."""

    labels: Tensor
    log_z: Tensor
    entropy: Tensor | None
    g: Tensor
    e: Tensor | None

    def alive(self) -> Tensor:
        """Indices of tokens with a gradient. Zero upstream gradients are common (clipped or dead rows)."""
        return ((self.g != 0) if self.e is None else (self.g != 0) | (self.e != 0)).nonzero().squeeze(1)

    def take(self, index: Tensor | slice) -> Upstream:
        entropy = None if self.entropy is None else self.entropy[index]
        e = None if self.e is None else self.e[index]
        return Upstream(self.labels[index], self.log_z[index], entropy, self.g[index], e)

    def softmax_gradient_(self, tile: Tensor, rows: slice) -> Tensor:
        """Overwrites logits (rows, columns) with -g p - e p (log p + H), the gradient without the labels' own +g."""
        g = self.g[rows].unsqueeze(1)
        log_p = tile.sub_(self.log_z[rows].unsqueeze(1))
        if self.e is None or self.entropy is None:
            return log_p.exp_().mul_(-g)
        pull = (log_p + self.entropy[rows].unsqueeze(1)).mul_(self.e[rows].unsqueeze(1)).add_(g)
        return log_p.exp_().mul_(pull.neg_())


def _backward(
    head: TiledHead, tokens: Upstream, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for hidden, weight and bias; each None where ``needs`` says so, and then not computed."""
    grad_hidden = head.new_zeros(*head.hidden.shape) if needs[0] else None
    alive = tokens.alive()
    if alive.numel() < head.n:
        part, grad_weight, grad_bias = _backward(head.take(alive), tokens.take(alive), needs)
        if grad_hidden is not None and part is not None:
            grad_hidden.index_copy_(0, alive, part)
        return grad_hidden, grad_weight, grad_bias
    gradient = HeadGradient(head, needs_weight=needs[1], needs_bias=needs[2])
    own = tokens.g.clone()  # becomes dL/du of the label's own entry, softmax and all
    bounds = label_rows(tokens.labels, head)
    for columns, weight_tile in head.vocab_tiles():
        for rows in head.token_tiles():
            tile = head.logits(rows, columns, weight_tile)
            slope = head.logit_map.cap_slope(tile)
            grad_tile = tokens.softmax_gradient_(tile, rows)
            inside = label_overlap(bounds, rows, columns, head)
            ids = None if inside is None else (tokens.labels[rows][inside] - columns.start).unsqueeze(1)
            if ids is not None:
                own[rows][inside] += grad_tile[inside].gather(1, ids).squeeze(1)
                if slope is not None:
                    own[rows][inside] *= slope[inside].gather(1, ids).squeeze(1)
                grad_tile[inside].scatter_(1, ids, 0.0)
            if slope is not None:
                grad_tile.mul_(slope)
            if grad_hidden is not None:
                head.products.addmm_(grad_hidden[rows], head.products.factor(grad_tile), weight_tile)
            if ids is not None:
                grad_tile[inside].scatter_(1, ids, own[rows][inside].unsqueeze(1))
            gradient.add(rows, columns, grad_tile)
        gradient.finish(columns)
    if grad_hidden is not None:
        # Added last: the label's row is large, and every later addition of a small tile would be rounded against it.
        own_row = head.weight.index_select(0, tokens.labels).to(grad_hidden.dtype)
        grad_hidden.addcmul_(own_row, own.unsqueeze(1))
    return grad_hidden, gradient.weight, gradient.bias
