"""KTO for answers labelled good or bad without a partner, arXiv 2402.01306 (not the unlearning papers' variant)."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    mean_over,
    require_non_negative,
    require_positive,
    row_vector,
    token_stats,
)


def unpaired_kto_loss(
    logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    positive: Tensor,
    mismatched_logps: Tensor,
    ref_mismatched_logps: Tensor,
    mismatched_mask: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Tensor, Stats]:
    """KTO, arXiv 2402.01306 Eq. 8, less its constant.

        L = mean_b w_b (1 - sigma(v_b)),   v = beta (r - z) for good answers, beta (z - r) for bad ones
        r = sum_t (lp_t - lr_t),   z = sg[max(0, mean r of answers paired with other prompts)]

    ``logps``, ``ref_logps`` (B, T), ``mask`` (B, T) bool, ``positive`` (B,) bool; mismatched tensors (B', T'). Sequence
    sums, mean over rows that have tokens.

    Gradient weight on ``S_b``: ``-/+ w_b beta sigma(v)(1 - sigma(v)) / B`` for good/bad answers: it vanishes at both
    ends, so answers that are already very likely or unlikely are left alone.

    Caveat: z is a batch estimate of KL(policy || reference); the loss depends on how many mismatched rows stand in the
    micro-batch.

    Returns the loss, token statistics, ``z`` and ``mean_log_ratio`` of each sign (``positive_``, ``negative_``).
    """
    require_positive(beta=beta)
    require_non_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    logps, ref_logps = clean(mask, logps=logps, ref_logps=ref_logps)
    positive = row_vector("positive", positive, mask).bool()
    other, ref_other = clean(
        mismatched_mask,
        mask_name="mismatched_mask",
        mismatched_logps=mismatched_logps,
        ref_mismatched_logps=ref_mismatched_logps,
    )
    rows = mask.any(-1)
    ratio = (logps - ref_logps.detach()).sum(-1)  # (B,)
    z = mean_over((other - ref_other).detach().sum(-1), mismatched_mask.any(-1)).clamp(min=0).to(ratio)
    value = torch.sigmoid(beta * torch.where(positive, ratio - z, z - ratio))
    weight = torch.where(positive, desirable_weight, undesirable_weight).to(ratio)
    loss = mean_over(weight * (1.0 - value), rows)
    with torch.no_grad():
        stats = token_stats(logps, mask) | {
            "z": z,
            "positive_mean_log_ratio": mean_over(ratio, rows & positive),
            "negative_mean_log_ratio": mean_over(ratio, rows & ~positive),
        }
    return loss, stats
