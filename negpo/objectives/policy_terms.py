"""Pieces that policy losses share: reductions, importance weights of another sampler, the KL to a reference model."""

import torch
from torch import Tensor

from negpo.objectives._common import MAX_LOG_RATIO, clean, mean_over, require_positive, row_mean, token_mean

REDUCTIONS = ("token_mean", "sequence_mean", "constant")
IMPORTANCE_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def reduce_tokens(
    values: Tensor, mask: Tensor, *, reduction: str = "token_mean", length: float | None = None
) -> Tensor:
    """Token terms (B, T) to a scalar.

        token_mean     sum_bt m v / sum_bt m                        (DAPO, arXiv 2503.14476)
        sequence_mean  mean_b (sum_t m v / sum_t m), rows with tokens only  (GRPO, arXiv 2402.03300)
        constant       sum_bt m v / length                          (Dr.GRPO, arXiv 2503.20783)

    ``mask`` (B, T) bool. Caveat: token_mean and sequence_mean of a micro-batch are not additive; a step that is split
    reduces with ``constant`` and the length of the whole.

    Raises:
        ValueError: an unknown reduction, a length without ``constant`` or the reverse, a mask without True.
    """
    check_reduction(reduction, length)
    (values,) = clean(mask, values=values)
    if length is not None:
        return values.sum() / length
    if reduction == "sequence_mean":
        return mean_over(row_mean(values, mask), mask.any(-1))
    return token_mean(values, mask)


def check_reduction(reduction: str, length: float | None) -> None:
    """ValueError for a reduction that does not exist, and for a length that it does not take or lacks."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {REDUCTIONS}")
    if (length is not None) != (reduction == "constant"):
        raise ValueError(
            f"length is {length} with reduction {reduction!r}, expected a length with 'constant' and only there"
        )
    if length is not None:
        require_positive(length=length)


@torch.no_grad()
def importance_weights(
    logps: Tensor,
    sampling_logps: Tensor,
    mask: Tensor,
    *,
    mode: str = "token_truncate",
    clip_min: float | None = None,
    clip_max: float | None = 2.0,
) -> Tensor:
    """Weights that make up for samples of another engine than the one that trains, detached.

        w_t = exp(lp_t - lq_t)              token modes; lp of the training engine, lq of the sampler
        w_t = exp(sum_t (lp_t - lq_t))      sequence modes, the same for all tokens of a row
        truncate: clamp(w, clip_min, clip_max);   mask: w where clip_min <= w <= clip_max, else 0

    ``logps``, ``sampling_logps`` (B, T), ``mask`` (B, T) bool; returns (B, T), 0 where ``mask`` is False. Truncated
    importance sampling is Ionides 2008 (J. Comput. Graph. Stat. 17); TRL and verl bound at 2. None leaves a side open.

    Caveat: truncation is biased towards the sampler. Log-ratios are cut at +-20.

    Raises:
        ValueError: an unknown mode, bounds that leave nothing, a mask without True.
    """
    if mode not in IMPORTANCE_MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {IMPORTANCE_MODES}")
    low, high = (0.0 if clip_min is None else clip_min), (float("inf") if clip_max is None else clip_max)
    if not 0 <= low <= high or high == 0:
        raise ValueError(f"clip_min is {clip_min} and clip_max {clip_max}, expected 0 <= clip_min <= clip_max > 0")
    logps, sampling_logps = clean(mask, logps=logps, sampling_logps=sampling_logps)
    level, bound = mode.split("_")
    gap = logps - sampling_logps
    if level == "sequence":
        gap = gap.sum(-1, keepdim=True).expand_as(gap)
    weight = gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if bound == "truncate":
        weight = weight.clamp(low, high)
    else:
        weight = torch.where((weight >= low) & (weight <= high), weight, 0.0)
    return torch.where(mask, weight, 0.0)


def low_variance_kl(logps: Tensor, ref_logps: Tensor, mask: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) per token from the policy's own samples (k3; verl: low_var_kl).

        k_t = e^d - d - 1,   d = lr_t - lp_t        (J. Schulman, joschu.net/blog/kl-approx.html)

    ``logps``, ``ref_logps`` (B, T), ``mask`` (B, T) bool; returns (B, T) >= 0, 0 where ``mask`` is False. No gradient
    flows into ``ref_logps``. Gradient weight: ``1 - e^d``.

    Caveat: the value is an unbiased estimate on-policy; its gradient is not that of the KL, and off-policy
    neither is the value. d is cut at +-20, beyond which the gradient is 0.

    Raises:
        ValueError: shapes that differ, a mask without True.
    """
    logps, ref_logps = clean(mask, logps=logps, ref_logps=ref_logps)
    gap = (ref_logps.detach() - logps).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.where(mask, gap.exp() - gap - 1.0, 0.0)
