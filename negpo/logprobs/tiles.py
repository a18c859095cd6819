"""What every tiled pass over the vocabulary shares: tile sizes, the map from projection to logit, gathered heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negpo.logprobs.products import Products

# 4 MiB of float32 logits stay in the second-level cache of a server core: the exponentials then cost a few percent of
# the matrix products (measured: same GEMM speed from 512 to 8192 columns). GPUs want larger tiles to fill the device.
CPU_TILE_BYTES = 4 * 2**20
CUDA_TILE_BYTES = 256 * 2**20
_MAX_TILE_TOKENS = 1024


@dataclass(frozen=True)
class LogitMap:
    """Elementwise map from ``u = h·w + b`` to the logit: ``z = softcap * tanh(scale * u / softcap) / temperature``.

    Without ``softcap`` it is ``z = scale * u / temperature``. ``scale`` multiplies (Cohere ``logit_scale``; Granite
    divides by ``logits_scaling``, so its scale is the inverse), ``softcap`` is Gemma 2's ``final_logit_softcapping``.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap must be positive or None, got {self.softcap}")

    @property
    def factor(self) -> float:
        """dz/du where it does not depend on u: all of it without soft-capping, the factor before ``1 - tanh²`` with."""
        return self.scale / self.temperature

    def apply_(self, tile: Tensor) -> Tensor:
        """Overwrites projections ``u`` with logits ``z``."""
        if self.softcap is not None:
            return tile.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)
        return tile if self.factor == 1.0 else tile.mul_(self.factor)

    def cap_slope(self, logits: Tensor) -> Tensor | None:
        """``1 - tanh²`` at logits ``z``, so that dz/du = ``factor * cap_slope``; None without soft-capping."""
        if self.softcap is None:
            return None
        tanh = logits * (self.temperature / self.softcap)
        return tanh.mul_(tanh).neg_().add_(1.0)


def tile_shape(n_tokens: int, vocab: int, device: torch.device, tile_bytes: int | None) -> tuple[int, int]:
    """(tokens, vocabulary entries) of a tile that holds at most ``tile_bytes`` of float32 logits.

    Few tokens get wide tiles, so that short batches do not pay for many small products. The vocabulary side never falls
    below 256, which bounds the number of tiles when ``tile_bytes`` is tiny.
    """
    if tile_bytes is None:
        tile_bytes = CPU_TILE_BYTES if device.type == "cpu" else CUDA_TILE_BYTES
    tokens = max(1, min(n_tokens, _MAX_TILE_TOKENS))
    return tokens, min(vocab, max(256, tile_bytes // (4 * tokens)))


class TiledHead:
    """Walks over the logits of ``hidden @ weight.T`` one (tokens, vocabulary) tile at a time.

    The vocabulary is the outer loop: a weight tile is converted once, and its gradient is complete (and can be rounded
    to the weight's dtype) before the next tile begins: a float32 copy of a bfloat16 head or of its gradient never
    exists.

    hidden: (n, H), weight: (V, H) and bias: (V,) in any floating dtype. ``products`` None: chosen by hidden's dtype.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        logit_map: LogitMap,
        tile_bytes: int | None,
        products: Products | None = None,
    ):
        self.products = products or Products.choose(hidden)
        self.hidden = self.products.factor(hidden)
        self.weight, self.bias, self.logit_map = weight, bias, logit_map
        self.n, self.vocab = hidden.shape[0], weight.shape[0]
        self.tile_bytes = tile_bytes
        self.tokens, self.width = tile_shape(self.n, self.vocab, hidden.device, tile_bytes)
        self._buffer = self.hidden.new_empty(self.tokens * self.width, dtype=self.products.results)

    def new_zeros(self, *shape: int) -> Tensor:
        """Zeros in the dtype of results, on the head's device."""
        return self.hidden.new_zeros(shape, dtype=self.products.results)

    def take(self, index: Tensor) -> TiledHead:
        """The same head over fewer tokens."""
        return TiledHead(self.hidden[index], self.weight, self.bias, self.logit_map, self.tile_bytes, self.products)

    def vocab_tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """(columns, weight rows as a factor of products)."""
        for start in range(0, self.vocab, self.width):
            columns = slice(start, min(start + self.width, self.vocab))
            yield columns, self.products.factor(self.weight[columns])

    def token_tiles(self) -> Iterator[slice]:
        """Row ranges; one empty range when there are no tokens, so that gradients are still written (as zeros)."""
        for start in range(0, max(self.n, 1), self.tokens):
            yield slice(start, min(start + self.tokens, self.n))

    def logits(self, rows: slice, columns: slice, weight_tile: Tensor) -> Tensor:
        """Logits (rows, columns) in a buffer that the next call overwrites."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        tile = self._buffer[: shape[0] * shape[1]].view(shape)
        self.products.mm(self.hidden[rows], weight_tile.t(), out=tile)
        if self.bias is not None:
            tile += self.bias[columns]
        return self.logit_map.apply_(tile)


class HeadGradient:
    """Gradients of a head, accumulated per vocabulary tile in the compute dtype; None for what does not need one."""

    def __init__(self, head: TiledHead, *, needs_weight: bool, needs_bias: bool):
        self.head = head
        self.weight = torch.empty_like(head.weight) if needs_weight else None
        self.bias = torch.empty_like(head.bias) if needs_bias and head.bias is not None else None
        same_dtype = self.weight is not None and self.weight.dtype == head.products.results
        self._scratch = None
        if self.weight is not None and not same_dtype:
            self._scratch = torch.empty_like(head.weight[: head.width], dtype=head.products.results)
        self._bias_sum = head.new_zeros(0)

    def add(self, rows: slice, columns: slice, grad_tile: Tensor) -> None:
        """Adds one tile's share; call for all row ranges of a column range, then ``finish`` the column range."""
        first = rows.start == 0
        if self.weight is not None:
            out = self.weight[columns] if self._scratch is None else self._scratch[: columns.stop - columns.start]
            multiply = self.head.products.mm if first else self.head.products.addmm_
            factor = self.head.products.factor(grad_tile)
            multiply(a=factor.t(), b=self.head.hidden[rows], out=out)
        if self.bias is not None:
            if first:
                self._bias_sum = grad_tile.new_zeros(grad_tile.shape[1])
            self._bias_sum += grad_tile.sum(0)

    def finish(self, columns: slice) -> None:
        """Rounds the finished column range into the returned gradient."""
        if self.weight is not None and self._scratch is not None:
            self.weight[columns].copy_(self._scratch[: columns.stop - columns.start])
        if self.bias is not None:
            self.bias[columns].copy_(self._bias_sum)


def label_rows(sorted_labels: Tensor, head: TiledHead) -> list[int]:
    """For labels in ascending order: entry k is the first token whose label lies at or past vocabulary tile k."""
    starts = torch.arange(0, head.vocab + head.width, head.width, device=sorted_labels.device)
    return torch.searchsorted(sorted_labels, starts).tolist()


def label_overlap(bounds: list[int], rows: slice, columns: slice, head: TiledHead) -> slice | None:
    """The tokens of ``rows`` whose label falls into ``columns``, as a range inside the tile; None if there is none."""
    k = columns.start // head.width
    start, stop = max(bounds[k], rows.start), min(bounds[k + 1], rows.stop)
    return slice(start - rows.start, stop - rows.start) if start < stop else None


def gathered(*params: Any) -> AbstractContextManager:
    """Makes ZeRO-3 partitioned parameters whole inside the context; nothing to do for any other tensor.

    A parameter that is already whole (its module's forward hook is running, or an embedding tied to it is in use) is
    left to whoever gathered it, because partitioning it on exit would pull it from under that module.
    """
    split = {id(p): p for p in params if p is not None and hasattr(p, "ds_id") and p.ds_status.name != "AVAILABLE"}
    if not split:
        return nullcontext()
    import deepspeed  # only reachable when DeepSpeed made the parameter

    return deepspeed.zero.GatheredParameters(list(split.values()))


def full(param: Any) -> Any:
    """An FSDP2 or tensor-parallel shard (DTensor) as a whole tensor, differentiably; other tensors unchanged."""
    return param.full_tensor() if hasattr(param, "full_tensor") else param


def no_autocast(device: torch.device) -> AbstractContextManager:
    """Tiles choose their own dtype; an autocast region around the caller must not lower it."""
    return torch.autocast(device.type, enabled=False)
