"""Log-probabilities in whole rows of logits: the plan of CUDA, few large products and one fused softmax gradient.

No loop over the vocabulary: as many tokens at a time as a memory budget permits, each with all its logits, so that
log Z is known after one kernel. D below is ``slope * (p - onehot)``, written by the kernel that computes log Z; a
product costs n·H·V multiply-adds.

    keep       head trained  forward: logits, D kept in the products' dtype  backward: D W and Dᵀ (g h)    3 products
    recompute  head trained  forward: logits, only log Z kept                backward: logits again, both  4 products
    direct     head frozen   forward: logits, D W = -d log p / dh kept       backward: one multiplication  2 products

``keep`` rounds D to bfloat16 exactly where ``recompute`` rounds its gradient tile. A gradient that arrives through the
entropy takes the backward of ``recompute`` in every plan.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from negpo.logprobs.products import Products
from negpo.logprobs.row_plan import Plan, Problem, budget_of, choose_plan
from negpo.logprobs.tiled import tiled_logprobs
from negpo.logprobs.tiles import LogitMap, gathered, no_autocast


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def row_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    logit_map: LogitMap,
    return_entropy: bool,
    tile_bytes: int | None,
    products: Products,
) -> tuple[Tensor, Tensor | None]:
    """(logps, entropy or None), each (n,) float32, for states (n, H) and labels (n,).

    ``tile_bytes`` bounds what the plan may hold at a time. ValueError without Triton and for float64.
    """
    if not has_triton():
        raise ValueError("backend='triton' needs the package triton; use backend='torch'")
    if products.results != torch.float32:
        raise ValueError("backend='triton' computes in float32; use backend='torch' for float64 states")
    if hidden.shape[0] == 0:  # a product over no token is not worth a kernel, and not every library has one
        return tiled_logprobs(hidden, weight, bias, labels, logit_map, return_entropy, tile_bytes, products)
    learning = torch.is_grad_enabled()
    trained = learning and (weight.requires_grad or (bias is not None and bias.requires_grad))
    problem = Problem(
        tokens=hidden.shape[0],
        hidden=hidden.shape[1],
        vocab=weight.shape[0],
        width=products.operands.itemsize,
        head_trained=trained,
        states_trained=learning and hidden.requires_grad,
    )
    plan = choose_plan(problem, tile_bytes or budget_of(hidden.device))
    head = _Head(bias, logit_map, products, plan)
    if not trained and not problem.states_trained:
        return _forward(head, hidden, weight, labels, return_entropy).public()
    return _RowLogprobs.apply(hidden, weight, bias, labels, logit_map, return_entropy, products, plan)


@dataclass(frozen=True)
class _Head:
    """What both passes need beside the states and the weight."""

    bias: Tensor | None
    logit_map: LogitMap
    products: Products
    plan: Plan

    def projections(self, states: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
        """``h·w`` (m, V) float32 in ``buffer``, from factors of products."""
        return self.products.mm(states, weight.t(), out=buffer[: states.shape[0]])

    def buffers(self, like: Tensor, rows: int, vocab: int) -> tuple[Tensor, Tensor]:
        """(logits, gradients) of one block of rows; one and the same where the dtypes agree."""
        logits = like.new_empty(rows, vocab, dtype=torch.float32)
        operands = self.products.operands
        return logits, logits if operands == torch.float32 else like.new_empty(rows, vocab, dtype=operands)


@dataclass
class _Scores:
    """Per token, (n,): log p, log Z, entropy; ``slopes`` D (n, V) or ``direction`` (n, H) as the plan wants."""

    logps: Tensor
    log_z: Tensor
    entropy: Tensor | None
    slopes: Tensor | None = None
    direction: Tensor | None = None

    def public(self) -> tuple[Tensor, Tensor | None]:
        return self.logps, self.entropy


class _RowLogprobs(torch.autograd.Function):
    """Forward and backward of :func:`row_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        logit_map: LogitMap,
        return_entropy: bool,
        products: Products,
        plan: Plan,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        scores = _forward(_Head(bias, logit_map, products, plan), hidden, weight, labels, return_entropy)
        # A frozen head needs its direction only, unless a gradient may also arrive through the entropy.
        inputs = (None,) * 4 if scores.direction is not None and not return_entropy else (hidden, weight, bias, labels)
        ctx.save_for_backward(*inputs, scores.log_z, scores.entropy, scores.slopes, scores.direction)
        ctx.logit_map, ctx.products, ctx.plan, ctx.hidden_dtype = logit_map, products, plan, hidden.dtype
        return scores.public()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, log_z, entropy, slopes, direction = ctx.saved_tensors
        if grad_logps is None and grad_entropy is None:
            return (None,) * 8
        if direction is not None and grad_logps is not None and grad_entropy is None:
            return (direction * grad_logps.unsqueeze(1)).to(ctx.hidden_dtype), *(None,) * 7
        factor = ctx.logit_map.factor  # dz/du, folded into the upstream gradients
        g = torch.zeros_like(log_z) if grad_logps is None else grad_logps.float() * factor
        head = _Head(bias, ctx.logit_map, ctx.products, ctx.plan)
        with gathered(weight, bias), no_autocast(hidden.device):
            if slopes is not None and grad_entropy is None:
                grads = _backward_kept(head, hidden, weight, slopes, g, ctx.needs_input_grad)
            else:
                e = None if grad_entropy is None else grad_entropy.float() * factor
                upstream = _Upstream(labels, log_z, g, entropy, e)
                grads = _backward_recomputed(head, hidden, weight, upstream, ctx.needs_input_grad)
        return *grads, *(None,) * 5


def _forward(head: _Head, hidden: Tensor, weight: Tensor, labels: Tensor, return_entropy: bool) -> _Scores:
    from negpo.logprobs.kernels import softmax_rows

    n, vocab, plan, products = hidden.shape[0], weight.shape[0], head.plan, head.products
    numbers = lambda: hidden.new_empty(n, dtype=torch.float32)
    scores = _Scores(numbers(), numbers(), numbers() if return_entropy else None)
    logits, block = hidden.new_empty(plan.rows, vocab, dtype=torch.float32), None
    if plan.name == "keep":
        scores.slopes = hidden.new_empty(n, vocab, dtype=products.operands)
    elif plan.name == "direct":
        scores.direction = hidden.new_empty(n, hidden.shape[1], dtype=torch.float32)
        block = hidden.new_empty(plan.rows, vocab, dtype=products.operands)
    states, matrix = products.factor(hidden), products.factor(weight)
    for rows in plan.blocks(n):
        m = rows.stop - rows.start
        u = head.projections(states[rows], matrix, logits)
        d = scores.slopes[rows] if scores.slopes is not None else block[:m] if block is not None else None
        entropy = None if scores.entropy is None else scores.entropy[rows]
        softmax_rows(u, head.bias, labels[rows], head.logit_map, scores.logps[rows], scores.log_z[rows], entropy, d)
        if scores.direction is not None and d is not None:
            products.mm(products.factor(d), matrix, out=scores.direction[rows])
    if scores.direction is not None:
        scores.direction.mul_(-head.logit_map.factor)
    return scores


def _backward_kept(
    head: _Head, hidden: Tensor, weight: Tensor, slopes: Tensor, g: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """d log p / du = -D row by row: the upstream gradient goes to the narrow side of each product, D is only read."""
    products = head.products
    grad_hidden = grad_weight = grad_bias = None
    d, minus_g = products.factor(slopes), g.neg().unsqueeze(1)
    if needs[0]:
        out = hidden.new_empty(hidden.shape, dtype=torch.float32)
        grad_hidden = products.mm(d, products.factor(weight), out=out).mul_(minus_g).to(hidden.dtype)
    if needs[1]:
        scaled = products.factor(hidden.float() * minus_g)
        grad_weight = _rounded_product(products, d.t(), scaled, weight)
    if needs[2] and head.bias is not None:
        out = g.new_empty(1, slopes.shape[1])
        grad_bias = products.mm(products.factor(minus_g.t()), d, out=out).squeeze(0).to(head.bias.dtype)
    return grad_hidden, grad_weight, grad_bias


def _rounded_product(products: Products, a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """``a @ b`` in the dtype of ``like``, rounded once, from float32 sums."""
    if like.dtype == products.operands and like.is_cuda:
        return torch.mm(a, b)  # sums in float32, rounds as it writes: no float32 copy of a head's gradient
    return products.mm(a, b, out=torch.empty_like(like, dtype=torch.float32)).to(like.dtype)


@dataclass(frozen=True)
class _Upstream:
    """Per token, (n,): label, log Z, gradient g of log p, entropy and its gradient e; g and e carry dz/du."""

    labels: Tensor
    log_z: Tensor
    g: Tensor
    entropy: Tensor | None
    e: Tensor | None

    def alive(self) -> Tensor:
        """Indices of tokens with a gradient. Zero upstream gradients are common (clipped or dead rows)."""
        return ((self.g != 0) if self.e is None else (self.g != 0) | (self.e != 0)).nonzero().squeeze(1)

    def take(self, index: Tensor | slice) -> _Upstream:
        entropy = None if self.entropy is None else self.entropy[index]
        return _Upstream(
            self.labels[index], self.log_z[index], self.g[index], entropy, None if self.e is None else self.e[index]
        )


def _backward_recomputed(
    head: _Head, hidden: Tensor, weight: Tensor, upstream: _Upstream, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Logits again, overwritten by their gradient, and the products that are needed."""
    from negpo.logprobs.kernels import gradient_rows

    products, alive = head.products, upstream.alive()
    all_states, upstream = hidden, upstream.take(alive)
    hidden = hidden.index_select(0, alive)
    n, vocab = hidden.shape[0], weight.shape[0]
    sums = lambda like: torch.zeros_like(like, dtype=torch.float32)
    grad_hidden = sums(hidden) if needs[0] else None
    grad_weight = sums(weight) if needs[1] else None
    grad_bias = sums(head.bias) if needs[2] and head.bias is not None else None
    logits, gradients = head.buffers(hidden, min(head.plan.rows, max(n, 1)), vocab)
    states, matrix = products.factor(hidden), products.factor(weight)
    for rows in head.plan.blocks(n):
        part, m = upstream.take(rows), rows.stop - rows.start
        u, out = head.projections(states[rows], matrix, logits), gradients[:m]
        gradient_rows(u, head.bias, part.labels, head.logit_map, part.log_z, part.g, part.entropy, part.e, out)
        factor = products.factor(out)
        if grad_hidden is not None:
            products.mm(factor, matrix, out=grad_hidden[rows])
        if grad_weight is not None:
            products.addmm_(grad_weight, factor.t(), states[rows])
        if grad_bias is not None:
            grad_bias += out.sum(0, dtype=torch.float32)
    whole = None
    if grad_hidden is not None:
        whole = torch.zeros_like(all_states).index_copy_(0, alive, grad_hidden.to(all_states.dtype))
    return (
        whole,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None or head.bias is None else grad_bias.to(head.bias.dtype),
    )
