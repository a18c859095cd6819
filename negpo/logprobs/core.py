"""Log-probabilities of given tokens under a language-model head, without the (tokens, vocabulary) matrix.

For token t with hidden state h, label y and logits z = map(W h + b):

    log p(y) = z_y - log Z,           log Z = logsumexp(z)
    d log p(y) / dz = onehot(y) - p,  p = exp(z - log Z)

Labelled tokens are compacted first; positions without a label are never multiplied with the head. Then one of:

* tiles of the vocabulary that stay in cache (:mod:`negpo.logprobs.tiled`): CPUs;
* whole rows of logits, as many tokens at a time as the memory budget permits, with a fused softmax gradient
  (:mod:`negpo.logprobs.rows`): CUDA with Triton;
* TRL's kernel, on request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from negpo.logprobs.products import Products, autocast_dtype
from negpo.logprobs.tiled import tiled_logprobs
from negpo.logprobs.tiles import LogitMap, full, gathered, no_autocast

BACKENDS = ("auto", "torch", "triton", "trl")


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
    product_dtype: torch.dtype | None = None,
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
        tile_bytes: largest block of logits in bytes; None chooses by device.
        product_dtype: what the factors of matrix products are rounded to; sums are float32 in any case. None: half
            precision where the caller trains in it (``hidden``, or autocast) and the device multiplies it fast.
        backend: "auto", "torch" (vocabulary tiles), "triton" (whole rows; the choice on CUDA) or "trl" (its kernel).

    Returns:
        (B, T) float32 (float64 for float64 ``hidden``), exactly 0 where ``mask`` is False; with ``return_entropy`` a
        pair. All-False masks give zeros that still backpropagate zeros.

    Raises:
        ValueError: shapes that do not fit, a label outside [0, V) under the mask, a backend that is unknown or cannot
            run here.
    """
    logit_map = LogitMap(logit_scale, softcap, temperature)
    products = Products.choose(hidden, autocast_dtype(hidden.device), product_dtype)
    weight, bias = full(lm_head_weight), full(bias)
    with gathered(weight, bias), no_autocast(hidden.device):
        _check_shapes(hidden, weight, bias, labels, mask)
        index = mask.reshape(-1).bool().nonzero().squeeze(1)
        picked = labels.reshape(-1)[index]
        _check_labels(picked, weight.shape[0])
        picked, order = picked.sort()
        index = index[order]
        states = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
        scores = score_tokens(states, weight, bias, picked, logit_map, return_entropy, tile_bytes, products, backend)
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
    products: Products | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """``(logps,)`` or ``(logps, entropy)``, each (n,), for compacted states (n, H) and *ascending* labels (n,)."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    products = products or Products.choose(hidden)
    if backend == "trl":
        from negpo.compat import trl_token_logprobs

        # TRL multiplies in the dtype of the states
        return trl_token_logprobs(hidden.to(products.operands), weight, bias, labels, logit_map, return_entropy)
    arguments = (hidden, weight, bias, labels, logit_map, return_entropy, tile_bytes, products)
    if backend == "triton" or (backend == "auto" and _prefers_rows(hidden)):
        from negpo.logprobs.rows import row_logprobs

        logps, entropy = row_logprobs(*arguments)
    else:
        logps, entropy = tiled_logprobs(*arguments)
    return (logps,) if entropy is None else (logps, entropy)


def _prefers_rows(hidden: Tensor) -> bool:
    """CUDA with Triton; float64 stays with the tiles, because the kernels compute in float32."""
    if not hidden.is_cuda or hidden.dtype == torch.float64:
        return False
    from negpo.logprobs.rows import has_triton

    return has_triton()


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
