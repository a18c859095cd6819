"""Tensor pieces shared by all policy losses: normalisers, importance weights, the KL to a reference model."""

from typing import Any

import torch
from torch import Tensor

from negpo.trainers._policy.batch import Record
from negpo.trainers._policy.config import PolicyConfig


def reduction_of(batch: Record) -> dict[str, Any]:
    """``reduction`` and ``length`` for ``clipped_policy_loss``."""
    length = float(batch["length"])
    return {"reduction": "constant", "length": length} if length else {"reduction": "sequence_mean"}


def reduce_tokens(values: Tensor, mask: Tensor, length: float) -> Tensor:
    """(B, T) to a sum over tokens / ``length``; with length 0 the mean over rows of their token means."""
    values = torch.where(mask, values, 0.0)
    if length:
        return values.sum() / length
    return (values.sum(1) / mask.sum(1).clamp(min=1)).sum() / mask.any(1).sum().clamp(min=1)


def importance_weights(gap: Tensor, mask: Tensor, args: PolicyConfig) -> Tensor:
    """Weights (N, T-1) from ``gap`` = training minus sampling log-prob: truncated, or 0 outside the bounds."""
    level, bound = args.vllm_importance_sampling_mode.split("_")
    if level == "sequence":
        gap = torch.where(mask, gap, 0.0).sum(1, keepdim=True).expand_as(gap)
    weight = gap.clamp(-20.0, 20.0).exp()
    low = args.vllm_importance_sampling_clip_min
    high = args.vllm_importance_sampling_clip_max
    low, high = (0.0 if low is None else low), (float("inf") if high is None else high)
    if bound == "truncate":
        return weight.clamp(low, high)
    return torch.where((weight >= low) & (weight <= high), weight, 0.0)


def low_variance_kl(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) per token, (B, T): ``e^d - d - 1``, d = ref - policy (verl: low_var_kl)."""
    gap = (ref_logps - logps).clamp(-20.0, 20.0)
    return gap.exp() - gap - 1.0
