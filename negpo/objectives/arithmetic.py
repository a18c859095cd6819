"""Unlearning without training: straight lines between checkpoints (task vectors, extrapolation, mixing).

All are ``theta_a + w (theta_b - theta_a)``, computed in float32 (float64 for float64 weights) and rounded once.
"""

import torch
from torch import Tensor

from negpo.objectives._common import require_shape


def extrapolate_weight(start: Tensor, away_from: Tensor, origin: Tensor | None = None, *, weight: float) -> Tensor:
    """``start - weight (away_from - origin)``, in the dtype of ``start``; ``origin`` None is ``start`` itself.

    Neon (arXiv 2510.03597): ``origin=None``, ``away_from`` a brief fine-tune on the model's own samples, so the result
    is ``(1 + w) theta - w theta_s``. Task vector (negated fine-tuning, arXiv 2212.04089, MUSE's ``tv``): ``origin`` the
    model before, ``away_from`` the model over-fitted on the forget set.

    Entries that are not finite on any side, and tensors of integers, keep the value of ``start``. Raises ValueError for
    shapes that differ.
    """
    return _line(start, away_from, start if origin is None else origin, -weight)


def mix_weights(before: Tensor, after: Tensor, *, ratio: float) -> Tensor:
    """``ratio before + (1 - ratio) after``, in the dtype of ``after``: UWC (arXiv 2406.09179) restores utility so.

    Exactly ``after`` at 0 and ``before`` at 1. Raises ValueError for a ratio outside [0, 1] and shapes that differ.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is {ratio}, expected a number in [0, 1]: the share of the model before unlearning")
    if ratio in (0, 1):
        require_shape("before", before, tuple(after.shape), "the shape of after")
        return (before if ratio else after).to(after.dtype).clone()
    if not after.is_floating_point():
        return after.clone()
    wide = torch.promote_types(after.dtype, torch.float32)
    require_shape("before", before, tuple(after.shape), "the shape of after")
    return (ratio * before.to(wide) + (1 - ratio) * after.to(wide)).to(after.dtype)


def _line(start: Tensor, end: Tensor, origin: Tensor, weight: float) -> Tensor:
    require_shape("away_from", end, tuple(start.shape), "the shape of start")
    require_shape("origin", origin, tuple(start.shape), "the shape of start")
    if not start.is_floating_point() or weight == 0:
        return start.clone()
    wide = torch.promote_types(start.dtype, torch.float32)
    result = start.to(wide) + weight * (end.to(wide) - origin.to(wide))
    finite = torch.isfinite(result) & torch.isfinite(end) & torch.isfinite(origin)
    return torch.where(finite, result.to(start.dtype), start)
