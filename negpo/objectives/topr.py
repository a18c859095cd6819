"""TOPR, tapered off-policy REINFORCE, arXiv 2503.14286."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    mean_over,
    row_mean,
    row_vector,
    sign_stats,
    token_stats,
)


def topr_loss(logps: Tensor, old_logps: Tensor, mask: Tensor, rewards: Tensor) -> tuple[Tensor, Stats]:
    """TOPR, arXiv 2503.14286 Eq. 8 with the canonical limits: positives untouched, negatives tapered by their ratio.

        L = -mean_b sg[a_b] R_b (1/|y_b|) sum_t lp_t,   a = 1 for R >= 0,   a = min(1, exp(sum_t (lp_t - lo_t))) for R
        < 0

    ``logps``, ``old_logps`` (B, T), ``mask`` (B, T) bool, ``rewards`` (B,), +1/-1 in the paper. The ratio is that of
    the full sequence, computed in log space. Per-sequence mean, then mean over rows that have tokens.

    Gradient weight: ``-R/(B |y|)`` for R >= 0; ``+|R| min(1, rho_seq)/(B |y|)`` for R < 0. On-policy it is REINFORCE.

    Caveats: the product over a long answer vanishes after a small drop per token, so negatives disappear after a few
    updates; that is the design. Public ports use token ratios or a geometric mean and are different methods. The value
    is not an antiderivative of the gradient (a is detached).

    Returns the loss, token statistics, ``mean_log_ratio`` (per sequence), ``mean_weight`` (mean of a |R|) and, apart
    for R > 0 and R < 0 (prefix ``positive_``, ``negative_``), tokens, mean_logp, mean_ratio (per token),
    clip_fraction (rows with rho_seq > 1, cut to 1; 0 for positives, which have no ratio).
    """
    logps, old_logps = clean(mask, logps=logps, old_logps=old_logps)
    rows = mask.any(-1)
    rewards = torch.where(rows, row_vector("rewards", rewards, mask).detach().to(logps), 0.0)  # (B,)
    with torch.no_grad():
        log_ratio = (logps - old_logps).sum(-1)  # (B,), log of the full-sequence ratio
        taper = torch.where(rewards < 0, log_ratio.clamp(max=0.0).exp(), 1.0)
    loss = -mean_over(taper * rewards * row_mean(logps, mask), rows)
    with torch.no_grad():
        stats = token_stats(logps, mask) | {
            "mean_log_ratio": mean_over(log_ratio, rows),
            "mean_weight": mean_over(taper * rewards.abs(), rows),
        }
        up, down = (rewards > 0).unsqueeze(-1) & mask, (rewards < 0).unsqueeze(-1) & mask
        stats |= sign_stats(logps, old_logps, up, down, down & (log_ratio > 0).unsqueeze(-1))
    return loss, stats
