"""Gradient ascent with a detached weight per token: WGA, TNPO (and WTNPO), SatImp.

All are ``L = (1/N) sum_t sg[w(p_t)] lp_t`` with a token mean over the batch. The weight is a constant in the gradient,
``dL/dlp_t = w_t / N``, so the loss value is not a function whose derivative is the gradient: watch the statistics, not
the loss, and expect ``torch.autograd.gradcheck`` to disagree unless the weights are held fixed.
"""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    require_non_negative,
    require_positive,
    token_mean,
    token_stats,
)


def _weighted_ascent(logps: Tensor, weight: Tensor, mask: Tensor) -> tuple[Tensor, Stats]:
    """``(1/N) sum_t sg[w_t] lp_t`` and the statistics; ``logps`` is already clean, all (B, T)."""
    weight = weight.detach()
    # A token the model holds impossible has weight 0, and 0 * -inf would be NaN.
    loss = token_mean(torch.where(weight > 0, weight * logps, 0.0), mask)
    return loss, token_stats(logps, mask) | {"mean_weight": token_mean(weight, mask)}


def wga_loss(logps: Tensor, mask: Tensor, *, beta: float = 1.0) -> tuple[Tensor, Stats]:
    """Weighted gradient ascent, arXiv 2502.19301: ``L = (1/N) sum_t sg[p_t^beta] lp_t``.

    ``logps`` (B, T), ``mask`` (B, T) bool. Gradient weight ``p_t^beta / N``: tokens already unlikely are left alone. At
    ``beta = 1`` the gradient is CATNIP's, at ``beta = 0`` gradient ascent's.

    Caveat: for large beta (5 in the paper) only tokens with p near 1 move, and the step size falls with the number of
    those.

    Returns the loss, token statistics and ``mean_weight``.
    """
    require_non_negative(beta=beta)
    (logps,) = clean(mask, logps=logps)
    return _weighted_ascent(logps, (beta * logps.detach()).exp(), mask)


def tnpo_loss(
    logps: Tensor, ref_logps: Tensor, mask: Tensor, *, beta: float = 4.0, eps: float = 1e-5, alpha: float = 0.0
) -> tuple[Tensor, Stats]:
    """Token-wise NPO, arXiv 2502.19301: ``L = (1/N) sum_t sg[2 p^(beta+alpha) / (p^beta + p_ref^beta + eps)] lp_t``.

    ``logps``, ``ref_logps`` (B, T), ``mask`` (B, T) bool. ``alpha > 0`` is the paper's WTNPO (published 1.5). Gradient
    weight: the bracket over N, in [0, 2/N); it equals ``(2/beta)`` times CATNIP's static-reference gradient up to eps.

    Caveat: where both probabilities are tiny, eps dominates and the weight is 0 whatever the ratio: TNPO ignores tokens
    that neither model finds likely.

    Returns the loss, token statistics, ``mean_log_ratio`` (per token) and ``mean_weight``.
    """
    require_positive(beta=beta)
    require_non_negative(eps=eps, alpha=alpha)
    logps, ref_logps = clean(mask, logps=logps, ref_logps=ref_logps)
    current, reference = logps.detach(), ref_logps.detach()
    weight = 2.0 * ((beta + alpha) * current).exp() / ((beta * current).exp() + (beta * reference).exp() + eps)
    loss, stats = _weighted_ascent(logps, weight, mask)
    return loss, stats | {"mean_log_ratio": token_mean(current - reference, mask)}


def satimp_loss(logps: Tensor, mask: Tensor, *, beta1: float = 5.0, beta2: float = 1.0) -> tuple[Tensor, Stats]:
    """SatImp (saturation times importance) of open-unlearning: ``L = (1/N) sum_t sg[p^beta1 (1-p)^beta2] lp_t``.

    ``logps`` (B, T), ``mask`` (B, T) bool. Gradient weight ``p_t^beta1 (1 - p_t)^beta2 / N``.

    Caveat: the factor ``(1 - p)`` switches off exactly the memorised tokens: p = 1 has weight 0 and never moves.

    Returns the loss, token statistics and ``mean_weight``.
    """
    require_non_negative(beta1=beta1, beta2=beta2)
    (logps,) = clean(mask, logps=logps)
    current = logps.detach()
    complement = -torch.expm1(current.clamp(max=0.0))  # 1 - p without cancellation; rounding can leave lp at +1e-7
    return _weighted_ascent(logps, (beta1 * current).exp() * complement**beta2, mask)
