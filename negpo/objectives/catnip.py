"""CATNIP: unlearning against the model's own complement, token by token, arXiv 2602.02824."""

import math

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    log1mexp,
    require_positive,
    softplus,
    token_mean,
    token_stats,
)


def catnip_loss(
    logps: Tensor, mask: Tensor, *, beta: float = 1.0, ref_logps: Tensor | None = None
) -> tuple[Tensor, Stats]:
    """CATNIP, arXiv 2602.02824 (loss as in the release, gradient as in its Eq. 9).

        L = (1/N) sum_t softplus(-beta (q_t - lp_t)),   q_t = sg[log(1 - p_t)]   (or sg[lr_t] when ref_logps is given)

    ``logps`` (B, T), ``mask`` (B, T) bool, ``ref_logps`` (B, T) only for the static-reference ablation. Token mean over
    the batch, no factor 1/beta: the step grows with beta.

    Gradient weight: ``w_t = (beta/N) sigma(beta logit p_t) = (beta/N) p^beta / (p^beta + (1-p)^beta)``. At ``beta = 1``
    that is p_t/N, WGA's. Without the stop-gradient it would be divided by (1 - p_t) and blow up at memorised tokens.

    A token whose probability rounds to 1 has ``q = -inf``: its gradient is the limit ``beta/N`` exactly, and its loss
    is the value at 1 - p = half an ulp of 1, so that the logged loss stays finite.

    Caveats: no retain term and no length normaliser, so utility is only protected by the weight. The value is not an
    antiderivative of the gradient (q is detached). ``beta -> 0`` is uniform gradient ascent at half speed.

    Returns the loss, token statistics, ``mean_log_ratio`` (lp - q), ``mean_weight`` (mean of N w_t) and
    ``saturated_share`` (tokens with p = 1 in this dtype).
    """
    require_positive(beta=beta)
    if ref_logps is not None:
        logps, reference = clean(mask, logps=logps, ref_logps=ref_logps)
        saturated = torch.zeros_like(mask)
        q = reference.detach()
    else:
        (logps,) = clean(mask, logps=logps)
        saturated = logps.detach() >= 0
        # 1 - p of a probability that rounds to 1 is at most half the spacing of the numbers just below it.
        floor = math.log(torch.finfo(logps.dtype).eps / 2)
        q = torch.where(saturated, floor, log1mexp(torch.where(saturated, -1.0, logps.detach())))
    # The linear branch has slope beta, the limit of the weight; through softplus it would be beta sigma(-beta floor).
    at_one = beta * logps + softplus(-beta * q)
    loss = token_mean(torch.where(saturated, at_one, softplus(beta * (logps - q))), mask)
    with torch.no_grad():
        weight = torch.where(saturated, beta, beta * torch.sigmoid(beta * (logps - q)))
        stats = token_stats(logps, mask) | {
            "mean_log_ratio": token_mean(logps - q, mask),
            "mean_weight": token_mean(weight, mask),
            "saturated_share": token_mean(saturated.to(logps.dtype), mask),
        }
    return loss, stats
