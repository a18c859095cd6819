"""One more number per token than log p(label): what CE-U, PDU and UNDIAL read of the vocabulary, streamed in tiles.

With logits z, label y, p = softmax(z) and *rest* meaning every entry but the label:

* ``Complement``: ``log(1 - p_y) = lse_rest(z) - lse(z)``, gradient ``q - p`` with q = softmax of the rest; exact
  where ``1 - p_y`` computed from p_y would be rounded to 0. Constant beside it: the entropy of q.
* ``Spread``: ``max_v z - mean_v z``, gradient ``onehot(argmax) - 1/V``. The same number for log p.
* ``RestCrossEntropy``: ``-sum_rest q_v log p_v`` with q = softmax of the *reference's* rest, gradient ``p - q``.
  Constant beside it: the reference's log-odds of the label, ``log p_ref(y) - log(1 - p_ref(y))``.

A statistic is measured in one pass over the tiles; its backward recomputes each tile once. No (tokens, vocabulary)
matrix exists.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from negpo.logprobs.head import HeadSpec
from negpo.logprobs.products import Products, autocast_dtype
from negpo.logprobs.softmax import RunningSoftmax
from negpo.logprobs.tiles import HeadGradient, TiledHead, full, gathered, no_autocast

ABSENT = -1e30  # logit of a label that is left out: its exponential is 0 and 0 * ABSENT is 0, unlike 0 * -inf


@dataclass
class Tile:
    """Logits of the policy (and of the reference, if any) for ``rows`` x ``columns``; the next one overwrites them."""

    rows: slice
    columns: slice
    weight: Tensor
    logits: Tensor
    reference: Tensor | None

    def entries(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Where ``index`` (n,), one vocabulary entry per token, falls into this tile: (rows of the tile, columns)."""
        ids = index[self.rows] - self.columns.start
        place = ((ids >= 0) & (ids < self.columns.stop - self.columns.start)).nonzero().squeeze(1)
        return place, ids[place]


class Statistic(ABC):
    """``measure`` gives the value (n,), a constant (n,) or None, and what ``logit_gradient`` needs again."""

    uses_reference = False

    @abstractmethod
    def measure(self, tiles: Iterator[Tile], head: TiledHead, labels: Tensor) -> tuple[Tensor, Tensor | None, tuple]:
        """One pass over the tiles."""

    @abstractmethod
    def logit_gradient(self, tile: Tile, labels: Tensor, saved: tuple[Tensor, ...], grad: Tensor) -> Tensor:
        """``grad * d value / d logits`` for one tile; may overwrite the tile."""


class Complement(Statistic):
    """``log(1 - p_y)``, and the entropy of the distribution that is left when the label is taken out."""

    def measure(self, tiles: Iterator[Tile], head: TiledHead, labels: Tensor) -> tuple[Tensor, Tensor | None, tuple]:
        label_logit = head.new_zeros(head.n)
        rest = RunningSoftmax(label_logit, moments=1)
        for tile in tiles:
            take_out(tile, tile.logits, labels, label_logit)
            rest.update(tile.rows, tile.logits)
        log_rest = rest.log_z()
        log_odds = label_logit - log_rest
        return F.logsigmoid(-log_odds), rest.entropy(), (log_rest, log_odds)

    def logit_gradient(self, tile: Tile, labels: Tensor, saved: tuple[Tensor, ...], grad: Tensor) -> Tensor:
        log_rest, log_odds = saved
        pull = grad * torch.sigmoid(log_odds[tile.rows])  # q_v - p_v = q_v p_y on the rest, -p_y at the label
        place, ids = tile.entries(labels)
        out = tile.logits.sub_(log_rest[tile.rows].unsqueeze(1))
        out[place, ids] = ABSENT
        out.exp_().mul_(pull.unsqueeze(1))
        out[place, ids] = -pull[place]
        return out


class Spread(Statistic):
    """``max_v z - mean_v z``. Where several entries are largest, the first one carries the gradient."""

    def measure(self, tiles: Iterator[Tile], head: TiledHead, labels: Tensor) -> tuple[Tensor, Tensor | None, tuple]:
        largest = head.new_zeros(head.n).fill_(-torch.inf)
        best, total = torch.zeros_like(labels), head.new_zeros(head.n)
        for tile in tiles:
            top, where = tile.logits.max(1)
            better = top > largest[tile.rows]
            best[tile.rows] = torch.where(better, where + tile.columns.start, best[tile.rows])
            largest[tile.rows] = torch.maximum(largest[tile.rows], top)
            total[tile.rows] += tile.logits.sum(1)
        vocab = total.new_full((), head.vocab)
        return largest - total / vocab, None, (best, vocab)

    def logit_gradient(self, tile: Tile, labels: Tensor, saved: tuple[Tensor, ...], grad: Tensor) -> Tensor:
        best, vocab = saved
        out = tile.logits.copy_((-grad / vocab).unsqueeze(1).expand_as(tile.logits))
        place, ids = tile.entries(best)
        out[place, ids] += grad[place]
        return out


class RestCrossEntropy(Statistic):
    """Cross-entropy from the reference without its label to the policy; the reference's log-odds of the label."""

    uses_reference = True

    def measure(self, tiles: Iterator[Tile], head: TiledHead, labels: Tensor) -> tuple[Tensor, Tensor | None, tuple]:
        ref_label, mean_logit = head.new_zeros(head.n), head.new_zeros(head.n)
        policy, rest = RunningSoftmax(ref_label), RunningSoftmax(ref_label)
        for tile in tiles:
            assert tile.reference is not None
            take_out(tile, tile.reference, labels, ref_label)
            weights, shrink = rest.update(tile.rows, tile.reference)
            mean_logit[tile.rows] = mean_logit[tile.rows] * shrink + weights.mul_(tile.logits).sum(1)
            policy.update(tile.rows, tile.logits)
        log_z, ref_log_rest = policy.log_z(), rest.log_z()
        return log_z - mean_logit / rest.total, ref_label - ref_log_rest, (log_z, ref_log_rest)

    def logit_gradient(self, tile: Tile, labels: Tensor, saved: tuple[Tensor, ...], grad: Tensor) -> Tensor:
        log_z, ref_log_rest = saved
        assert tile.reference is not None
        q = tile.reference.sub_(ref_log_rest[tile.rows].unsqueeze(1))
        place, ids = tile.entries(labels)
        q[place, ids] = ABSENT
        p = tile.logits.sub_(log_z[tile.rows].unsqueeze(1)).exp_()
        return p.sub_(q.exp_()).mul_(grad.unsqueeze(1))


def take_out(tile: Tile, logits: Tensor, labels: Tensor, kept: Tensor) -> None:
    """Moves the labels' logits of a tile into ``kept`` (n,) and leaves ABSENT in their place."""
    place, ids = tile.entries(labels)
    kept[tile.rows][place] = logits[place, ids]
    logits[place, ids] = ABSENT


def token_statistic(
    statistic: Statistic,
    hidden: Tensor,
    head: HeadSpec | Tensor,
    labels: Tensor,
    *,
    ref_hidden: Tensor | None = None,
    ref_head: HeadSpec | Tensor | None = None,
    tile_bytes: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``(value, constant)``, each (n,), for states (n, H) that predict ``labels`` (n,); gradient through value only.

    ``head``: a :class:`HeadSpec` or a bare weight (V, H). ``ref_hidden`` (n, H') and ``ref_head``: the reference, for a
    statistic that uses one. float32, float64 for float64 states.

    Raises ValueError for shapes that do not fit, a label outside the vocabulary, and a reference that is missing, not
    used, or of another vocabulary.
    """
    spec, ref_spec = _spec(head), None if ref_head is None else _spec(ref_head)
    spec = replace(spec, products=spec.products or Products.choose(hidden, autocast_dtype(hidden.device)))
    if hidden.dim() != 2 or labels.shape != hidden.shape[:1]:
        raise ValueError(f"states must be (n, H) and labels (n,), got {tuple(hidden.shape)} and {tuple(labels.shape)}")
    if statistic.uses_reference != (ref_hidden is not None and ref_spec is not None):
        raise ValueError(f"{type(statistic).__name__} {'needs' if statistic.uses_reference else 'has no'} reference")
    heads = [spec.weight, spec.bias] + ([] if ref_spec is None else [ref_spec.weight, ref_spec.bias])
    with gathered(*heads), no_autocast(hidden.device):
        vocab = spec.weight.shape[0]
        if vocab < 2:
            raise ValueError(f"the vocabulary has {vocab} entry; leaving the label out leaves nothing")
        if labels.numel() and not bool(((labels >= 0) & (labels < vocab)).all()):
            raise ValueError(f"a label lies outside the vocabulary [0, {vocab}); check that tokenizer and model fit")
        if ref_spec is not None and ref_spec.weight.shape[0] != vocab:
            raise ValueError(
                f"policy and reference must share a vocabulary, their heads have {vocab} and "
                f"{ref_spec.weight.shape[0]} rows"
            )
        reference = None if ref_hidden is None else ref_hidden.detach()
        return _Statistic.apply(
            hidden, spec.weight, spec.bias, labels, reference, statistic, spec, ref_spec, tile_bytes
        )


def _spec(head: HeadSpec | Tensor) -> HeadSpec:
    if isinstance(head, HeadSpec):
        return replace(head, weight=full(head.weight), bias=full(head.bias))
    return HeadSpec(full(head))


def _tiles(head: TiledHead, reference: TiledHead | None) -> Iterator[Tile]:
    other = iter(()) if reference is None else reference.vocab_tiles()
    for columns, weight in head.vocab_tiles():
        ref_weight = None if reference is None else next(other)[1]
        for rows in head.token_tiles():
            ref_logits = None
            if reference is not None and ref_weight is not None:
                ref_logits = reference.logits(rows, columns, ref_weight)
            yield Tile(rows, columns, weight, head.logits(rows, columns, weight), ref_logits)


class _Statistic(torch.autograd.Function):
    """Forward: one pass. Backward: the tiles once more, each turned into its logit gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        ref_hidden: Tensor | None,
        statistic: Statistic,
        spec: HeadSpec,
        ref_spec: HeadSpec | None,
        tile_bytes: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        head, reference = _heads(hidden, weight, bias, ref_hidden, spec, ref_spec, tile_bytes)
        value, constant, saved = statistic.measure(_tiles(head, reference), head, labels)
        ctx.save_for_backward(hidden, weight, bias, labels, ref_hidden, *saved)
        ctx.statistic, ctx.spec, ctx.ref_spec, ctx.tile_bytes = statistic, spec, ref_spec, tile_bytes
        if constant is not None:
            ctx.mark_non_differentiable(constant)
        return value, constant

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, ref_hidden, *saved = ctx.saved_tensors
        ref = [] if ctx.ref_spec is None else [ctx.ref_spec.weight, ctx.ref_spec.bias]
        with gathered(weight, bias, *ref), no_autocast(hidden.device):
            head, reference = _heads(hidden, weight, bias, ref_hidden, ctx.spec, ctx.ref_spec, ctx.tile_bytes)
            grad_hidden = head.new_zeros(*head.hidden.shape) if ctx.needs_input_grad[0] else None
            gradient = HeadGradient(head, needs_weight=ctx.needs_input_grad[1], needs_bias=ctx.needs_input_grad[2])
            for tile in _tiles(head, reference):
                slope = head.logit_map.cap_slope(tile.logits)
                pull = ctx.statistic.logit_gradient(tile, labels, tuple(saved), grad[tile.rows])
                if slope is not None:
                    pull.mul_(slope)
                if head.logit_map.factor != 1.0:
                    pull.mul_(head.logit_map.factor)
                if grad_hidden is not None:
                    head.products.addmm_(grad_hidden[tile.rows], head.products.factor(pull), tile.weight)
                gradient.add(tile.rows, tile.columns, pull)
                if tile.rows.stop >= head.n:
                    gradient.finish(tile.columns)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            gradient.weight,
            gradient.bias,
            *(None,) * 6,
        )


def _heads(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ref_hidden: Tensor | None,
    spec: HeadSpec,
    ref_spec: HeadSpec | None,
    tile_bytes: int | None,
) -> tuple[TiledHead, TiledHead | None]:
    head = TiledHead(hidden, weight, bias, spec.logit_map(), tile_bytes, spec.products)
    if ref_hidden is None or ref_spec is None:
        return head, None
    ref_map = ref_spec.logit_map()
    return head, TiledHead(ref_hidden, ref_spec.weight, ref_spec.bias, ref_map, tile_bytes, spec.products)
