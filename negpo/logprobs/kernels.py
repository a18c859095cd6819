"""Triton kernels over whole rows of logits; imported only where Triton is installed.

Both read float32 projections ``u = h·w`` of shape (m, V) and compute in float32. With the map of
:class:`negpo.logprobs.tiles.LogitMap`, ``z = inner * u`` or ``z = outer * tanh(inner * u)``; ``slope`` is 1 or
1 - tanh².
"""

# No `from __future__ import annotations` here: Triton reads the annotations of its kernels.

import triton
import triton.language as tl
from torch import Tensor

from negpo.logprobs.tiles import LogitMap

# Entries of a row that one program holds at a time: 16 KiB of float32, two loads in flight per warp and more to come.
BLOCK = 4096
WARPS = 8


@triton.jit
def _logits(u, bias_ptr, columns, inside, inner, outer, BIASED: tl.constexpr, CAPPED: tl.constexpr):
    """(z, slope) of one block of projections."""
    if BIASED:
        u += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    x = u * inner
    slope = x * 0.0 + 1.0
    if CAPPED:
        tanh = 2.0 * tl.sigmoid(2.0 * x) - 1.0
        slope = 1.0 - tanh * tanh
        x = tanh * outer
    return x, slope


@triton.jit
def _softmax_rows(
    u_ptr,
    u_stride,
    bias_ptr,
    labels_ptr,
    logps_ptr,
    log_z_ptr,
    entropy_ptr,
    slopes_ptr,
    slopes_stride,
    vocab,
    inner,
    outer,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    SLOPES: tl.constexpr,
    SIZE: tl.constexpr,
):
    """One program per token: log p(label), log Z, entropy, and the row ``slope * (p - onehot)``."""
    row = tl.program_id(0).to(tl.int64)
    u_row = u_ptr + row * u_stride
    # Moments are taken about the peak, where the mass is (negpo.logprobs.softmax has the algebra of moving it).
    peak = tl.full((), -1.0e30, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    first = tl.full((), 0.0, tl.float32)
    for start in range(0, vocab, SIZE):
        columns = start + tl.arange(0, SIZE)
        inside = columns < vocab
        u = tl.load(u_row + columns, mask=inside, other=0.0)
        z, _ = _logits(u, bias_ptr, columns, inside, inner, outer, BIASED, CAPPED)
        z = tl.where(inside, z, -float("inf"))
        higher = tl.maximum(peak, tl.max(z, axis=0))
        moved = peak - higher
        shrink = tl.exp(moved)
        x = z - higher
        e = tl.exp(x)
        if ENTROPY:
            first = shrink * (first + moved * total) + tl.sum(tl.where(inside & (e > 0.0), e * x, 0.0), axis=0)
        total = total * shrink + tl.sum(e, axis=0)
        peak = higher
    log_z = peak + tl.log(total)
    label = tl.load(labels_ptr + row)
    z_label, _ = _logits(tl.load(u_row + label), bias_ptr, label, label >= 0, inner, outer, BIASED, CAPPED)
    # A label that holds all the mass may round to a hair above 0; written so that NaN stays NaN.
    log_p = z_label - log_z
    tl.store(logps_ptr + row, tl.where(log_p > 0.0, 0.0, log_p))
    tl.store(log_z_ptr + row, log_z)
    if ENTROPY:
        tl.store(entropy_ptr + row, tl.log(total) - first / total)
    if SLOPES:
        for start in range(0, vocab, SIZE):
            columns = start + tl.arange(0, SIZE)
            inside = columns < vocab
            u = tl.load(u_row + columns, mask=inside, other=0.0)
            z, slope = _logits(u, bias_ptr, columns, inside, inner, outer, BIASED, CAPPED)
            p = tl.exp(z - log_z)
            value = slope * tl.where(columns == label, p - 1.0, p)
            out = slopes_ptr + row * slopes_stride + columns
            tl.store(out, value.to(slopes_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gradient_rows(
    u_ptr,
    u_stride,
    bias_ptr,
    labels_ptr,
    log_z_ptr,
    entropy_ptr,
    g_ptr,
    e_ptr,
    out_ptr,
    out_stride,
    vocab,
    inner,
    outer,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    ENTROPY: tl.constexpr,
    SIZE: tl.constexpr,
):
    """One block of one row: ``slope * (g (onehot - p) - e p (log p + H))``, the gradient of the projections."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = columns < vocab
    u = tl.load(u_ptr + row * u_stride + columns, mask=inside, other=0.0)
    z, slope = _logits(u, bias_ptr, columns, inside, inner, outer, BIASED, CAPPED)
    log_p = z - tl.load(log_z_ptr + row)
    p = tl.exp(log_p)
    g = tl.load(g_ptr + row)
    grad = g * tl.where(columns == tl.load(labels_ptr + row), 1.0 - p, -p)
    if ENTROPY:
        grad -= tl.load(e_ptr + row) * p * (log_p + tl.load(entropy_ptr + row))
    grad = grad * slope
    tl.store(out_ptr + row * out_stride + columns, grad.to(out_ptr.dtype.element_ty), mask=inside)


def softmax_rows(
    projections: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    logit_map: LogitMap,
    logps: Tensor,
    log_z: Tensor,
    entropy: Tensor | None,
    slopes: Tensor | None,
) -> None:
    """Fills logps, log_z and entropy (m,), and slopes (m, V) = d(-log p) / du / factor, from projections (m, V)."""
    inner, outer = _constants(logit_map)
    _softmax_rows[(projections.shape[0],)](
        projections,
        projections.stride(0),
        projections if bias is None else bias,
        labels,
        logps,
        log_z,
        log_z if entropy is None else entropy,
        projections if slopes is None else slopes,
        0 if slopes is None else slopes.stride(0),
        projections.shape[1],
        inner,
        outer,
        BIASED=bias is not None,
        CAPPED=logit_map.softcap is not None,
        ENTROPY=entropy is not None,
        SLOPES=slopes is not None,
        SIZE=BLOCK,
        num_warps=WARPS,
    )


def gradient_rows(
    projections: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    logit_map: LogitMap,
    log_z: Tensor,
    g: Tensor,
    entropy: Tensor | None,
    e: Tensor | None,
    out: Tensor,
) -> None:
    """Fills ``out`` (m, V), which may be ``projections`` itself, with dL/du for upstream g of log p and e of entropy.

    g and e carry the factor dz/du of the logit map already.
    """
    inner, outer = _constants(logit_map)
    m, vocab = projections.shape
    with_entropy = e is not None and entropy is not None
    _gradient_rows[(m, triton.cdiv(vocab, BLOCK))](
        projections,
        projections.stride(0),
        projections if bias is None else bias,
        labels,
        log_z,
        entropy if with_entropy else log_z,
        g,
        e if with_entropy else g,
        out,
        out.stride(0),
        vocab,
        inner,
        outer,
        BIASED=bias is not None,
        CAPPED=logit_map.softcap is not None,
        ENTROPY=with_entropy,
        SIZE=BLOCK,
        num_warps=WARPS,
    )


def _constants(logit_map: LogitMap) -> tuple[float, float]:
    """(inner, outer) of the map; floats, so that Triton does not compile anew for an integer 1."""
    if logit_map.softcap is None:
        return float(logit_map.factor), 1.0
    return logit_map.scale / logit_map.softcap, logit_map.softcap / logit_map.temperature
