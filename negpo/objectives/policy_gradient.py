"""The clipped token loss shared by PSR/NSR/W-REINFORCE, NGRPO, ResRL, RAFT++ and Reinforce-Rej."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    MAX_LOG_RATIO,
    Stats,
    clean,
    row_vector,
    sign_stats,
    token_mean,
    token_stats,
)
from negpo.objectives.policy_terms import check_reduction, reduce_tokens


def clipped_policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    reduction: str = "token_mean",
    length: float | None = None,
) -> tuple[Tensor, Stats]:
    """PPO's clipped surrogate with separate bounds, arXiv 1707.06347 Eq. 7; dual clip arXiv 1912.09729.

        l_t = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high)),   rho = exp(lp - lo)
        for A < 0 and a dual clip c additionally  l_t = min(l_t, -A c)

    ``logps``, ``old_logps`` (B, T), ``mask`` (B, T) bool, ``advantages`` (B,) or (B, T). No gradient flows into
    ``old_logps`` or ``advantages``. ``reduction``: ``token_mean`` over the batch; ``sequence_mean``, the mean over
    sequences of their token means; ``constant``, the sum over all tokens / ``length`` (not divided by B).

    Gradient weight before the reduction: ``-A rho live``, live = rho <= 1 + clip_high for A >= 0 and, for A < 0,
    rho >= 1 - clip_low and rho <= c. So clip_high acts on positive advantages only and clip_low on negative ones only.

    Caveat: without the dual clip a negative token whose probability went up has an unbounded gradient |A| rho.
    Log-ratios are cut at +-20, beyond which the gradient is 0. Exactly on-policy (rho = 1) nothing is clipped,
    whatever the bounds.

    Returns the loss, token statistics, ``mean_log_ratio``, ``clip_fraction``, ``mean_weight`` (mean of |A| rho live)
    and, apart for A > 0 and A < 0 (prefix ``positive_``, ``negative_``), tokens, mean_logp, mean_ratio,
    clip_fraction.
    """
    _check_settings(clip_low, clip_high, dual_clip, reduction, length)
    logps, old_logps = clean(mask, logps=logps, old_logps=old_logps)
    advantages = _per_token(advantages, mask).to(logps)
    log_ratio = logps - old_logps.detach()
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high))
    clipped = torch.where(advantages >= 0, ratio > 1.0 + clip_high, ratio < 1.0 - clip_low)
    if dual_clip is not None:
        # For A >= 0 the bound is moved out of reach: only negatives are cut from above.
        losses = torch.minimum(losses, torch.where(advantages < 0, -advantages * dual_clip, torch.inf))
        clipped |= (advantages < 0) & (ratio > dual_clip)
    clipped &= mask & (advantages != 0)
    with torch.no_grad():
        live = (~clipped).to(ratio.dtype)
        stats = token_stats(logps, mask) | {
            "mean_log_ratio": token_mean(log_ratio, mask),
            "clip_fraction": token_mean(clipped.to(ratio.dtype), mask),
            "mean_weight": token_mean(advantages.abs() * ratio * live, mask),
        }
        stats |= sign_stats(logps, old_logps, mask & (advantages > 0), mask & (advantages < 0), clipped)
    return reduce_tokens(losses, mask, reduction=reduction, length=length), stats


def _check_settings(
    clip_low: float, clip_high: float, dual_clip: float | None, reduction: str, length: float | None
) -> None:
    if not 0 <= clip_low <= 1:
        raise ValueError(f"clip_low is {clip_low}, expected a number in [0, 1]")
    if not clip_high >= 0:
        raise ValueError(f"clip_high is {clip_high}, expected a number >= 0")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}, expected None or a number > 1 (the papers use 3)")
    check_reduction(reduction, length)


def _per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages as (B, T) constants, 0 outside the mask."""
    if advantages.ndim == 1:
        advantages = row_vector("advantages", advantages, mask).unsqueeze(-1).expand(mask.shape)
    if advantages.shape != mask.shape:
        raise ValueError(
            f"advantages has shape {tuple(advantages.shape)}, expected ({mask.shape[0]},) = (B,) "
            f"or {tuple(mask.shape)} = (B, T)"
        )
    return torch.where(mask, advantages.detach(), 0.0)
