"""NFT, negative-aware fine-tuning, arXiv 2505.18116."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    require_non_negative,
    require_positive,
    row_vector,
    sign_stats,
    token_mean,
    token_stats,
)

WEIGHTINGS = ("one_minus_rate", "sqrt_odds", "none")
MAX_LOG_RATIO = 10.0
RATE_RANGE = (0.02, 0.98)  # the released clamp: a rate of 0 or 1 has no implicit negative policy


def nft_loss(
    logps: Tensor,
    old_logps: Tensor,
    mask: Tensor,
    correct: Tensor,
    pass_rate: Tensor,
    *,
    eps: float = 1.0,
    negative_weight: float = 1.0,
    weighting: str = "one_minus_rate",
    length: float = 1000,
) -> tuple[Tensor, Stats]:
    """NFT, arXiv 2505.18116 as released: fit wrong answers with the implicit negative policy.

        R = exp(min(lp - lo, 10)),  r = clamp(pass_rate, 0.02, 0.98),  v = (1 - r R) / (1 - r)
        l_t = -log R (correct),   -negative_weight log(max_v(v, eps)) (wrong);   L = sum omega(r) l_t / length
        omega: one_minus_rate 1 - r, sqrt_odds sqrt((1 - r)/r), none 1

    ``max_v`` has the value of max(v, eps) and the gradient of v (straight-through). ``logps``, ``old_logps`` (B, T),
    ``mask`` (B, T) bool, ``correct`` (B,) bool or a label > 0, ``pass_rate`` (B,) share of the prompt's samples that
    are correct. Sum over all tokens of the batch over the constant ``length``: not a mean over sequences.

    Gradient weight: correct ``-omega/length``; wrong ``+omega negative_weight r R / ((1 - r) max(v, eps)) / length``; 0
    where lp - lo > 10. On-policy it is Dr.GRPO (one_minus_rate) or GRPO with population std (sqrt_odds).

    Caveats: the value is 0 on-policy and says nothing about progress. With length 1000 the gradient norm is far above
    the usual clip, so the learning rate acts through the clipped direction. Drop all-right and all-wrong groups: the
    clamp only keeps them finite. ``eps -> 0`` explodes as R -> 1/r.

    Returns the loss, token statistics, ``mean_log_ratio``, ``mean_weight`` (mean of length |dL/dlp|) and, apart for
    correct and wrong rows (prefix ``positive_``, ``negative_``), tokens, mean_logp, mean_ratio, clip_fraction (v <
    eps on wrong rows, lp - lo > 10 on correct ones).
    """
    require_positive(eps=eps, length=length)
    require_non_negative(negative_weight=negative_weight)
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}, expected one of {WEIGHTINGS}")
    logps, old_logps = clean(mask, logps=logps, old_logps=old_logps)
    correct = (row_vector("correct", correct, mask) > 0).unsqueeze(-1)  # (B, 1)
    rate = row_vector("pass_rate", pass_rate, mask).detach().to(logps).clamp(*RATE_RANGE).unsqueeze(-1)  # (B, 1)
    omega = {"one_minus_rate": 1.0 - rate, "sqrt_odds": ((1.0 - rate) / rate).sqrt(), "none": torch.ones_like(rate)}
    log_ratio = (logps - old_logps.detach()).clamp(max=MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    implicit = (1.0 - rate * ratio) / (1.0 - rate)  # v
    straight_through = implicit + (implicit.clamp(min=eps) - implicit).detach()
    losses = omega[weighting] * torch.where(correct, -log_ratio, -negative_weight * straight_through.log())
    loss = torch.where(mask, losses, 0.0).sum() / length
    with torch.no_grad():
        above = logps - old_logps > MAX_LOG_RATIO
        wrong_weight = negative_weight * rate * ratio / ((1.0 - rate) * implicit.clamp(min=eps))
        weight = omega[weighting] * torch.where(above, 0.0, torch.where(correct, 1.0, wrong_weight))
        stats = token_stats(logps, mask) | {
            "mean_log_ratio": token_mean(logps - old_logps, mask),
            "mean_weight": token_mean(weight, mask),
        }
        clipped = torch.where(correct, above, implicit < eps)
        stats |= sign_stats(logps, old_logps, mask & correct, mask & ~correct, clipped)
    return loss, stats
