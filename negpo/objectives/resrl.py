"""ResRL: spare the tokens of wrong answers that look like those of right answers, arXiv 2605.00380."""

import torch
import torch.nn.functional as F
from torch import Tensor

from negpo.objectives._common import require_mask, require_shape, row_vector

MIN_POSITIVE_TOKENS = 4
MAX_POSITIVE_TOKENS = 4096  # bounds the decomposition; more tokens are thinned out evenly
FLAT_RANGE = 1e-5


@torch.no_grad()
def resrl_token_weights(
    hidden: Tensor,
    mask: Tensor,
    positive: Tensor,
    group_ids: Tensor,
    *,
    rank: int = 64,
    quantiles: tuple[float, float] = (0.2, 0.8),
    min_weight: float = 0.1,
) -> Tensor:
    """Token weights for wrong answers, arXiv 2605.00380 as released (exact SVD, per prompt).

        X = layer_norm(h) of the group's positive tokens, mu its mean, V its top-k right singular vectors (centred)
        d_t = || (I - V V^T) (layer_norm(h_t) - mu) ||^2 / H  for the group's negative tokens
        w_t = min_weight + (1 - min_weight) clip((d_t - lo) / (hi - lo), 0, 1),  lo, hi = quantiles of d over the group

    ``hidden`` (B, T, H): the state that predicts token t, from the output of the second-to-last decoder layer;
    ``mask`` (B, T) bool; ``positive`` (B,) bool, raw score > 0; ``group_ids`` (B,) integers, equal for one prompt;
    ``k = min(rank, M - 1, H)`` for M positive tokens, null directions left out. Returns (B, T) weights without
    gradient, 1 on positives and padding, in the dtype of ``hidden`` (at least float32). All d equal: ``(1 +
    min_weight) / 2``.

    Multiply the advantage by it: ``dl/dlp = -w A rho live``. Groups without a negative, or with fewer than 4 positive
    tokens, keep weight 1.

    Caveats: a group must be complete in the batch; scattered groups silently get 1 (the release scatters them). With
    GRPO advantages all-wrong groups contribute nothing anyway. More than 4096 positive tokens are thinned out evenly,
    where the release samples them at random: same numbers on every run here.
    """
    require_mask(mask)
    if hidden.ndim != 3:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}, expected 3 axes (B, T, H)")
    require_shape("mask", mask, tuple(hidden.shape[:2]), "(B, T) of hidden")
    positive = row_vector("positive", positive, mask) > 0
    group_ids = row_vector("group_ids", group_ids, mask)
    low, high = quantiles
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles is {quantiles}, expected 0 <= low < high <= 1")
    if not 0 <= min_weight <= 1:
        raise ValueError(f"min_weight is {min_weight}, expected a number in [0, 1]")
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected >= 1")

    weights = torch.ones(mask.shape, dtype=torch.promote_types(hidden.dtype, torch.float32), device=mask.device)
    for group in group_ids.unique():
        rows = (group_ids == group).unsqueeze(-1)
        right = mask & rows & positive.unsqueeze(-1)  # (B, T)
        wrong = mask & rows & ~positive.unsqueeze(-1)
        if right.sum() < MIN_POSITIVE_TOKENS or not wrong.any():
            continue
        distance = _residual_energy(_normalised(hidden[right]), _normalised(hidden[wrong]), rank)
        weights[wrong] = _to_weight(distance, low, high, min_weight)
    return weights


def _normalised(states: Tensor) -> Tensor:
    """Layer norm without affine part, (M, H), so that scale and offset of a state do not matter."""
    return F.layer_norm(states.to(torch.promote_types(states.dtype, torch.float32)), states.shape[-1:], eps=1e-5)


def _residual_energy(right: Tensor, wrong: Tensor, rank: int) -> Tensor:
    """Squared distance per dimension, (N,), of the wrong states (N, H) from the span of the right ones (M, H)."""
    if len(right) > MAX_POSITIVE_TOKENS:
        places = torch.linspace(0, len(right) - 1, MAX_POSITIVE_TOKENS, dtype=torch.float64, device=right.device)
        right = right[places.round().long()]
    mean = right.mean(0)
    _, singular, directions = torch.linalg.svd(right - mean, full_matrices=False)
    kept = min(rank, len(right) - 1, right.shape[1])
    # Repeated tokens leave directions with singular value 0; which vectors the routine returns there is arbitrary.
    tolerance = singular[0] * max(right.shape) * torch.finfo(right.dtype).eps
    basis = directions[:kept][singular[:kept] > tolerance]  # (k, H)
    centred = wrong - mean
    residual = centred - (centred @ basis.T) @ basis
    return residual.square().mean(-1)


def _to_weight(distance: Tensor, low: float, high: float, min_weight: float) -> Tensor:
    """Linear ramp from ``min_weight`` at the low quantile to 1 at the high one, (N,) in and out."""
    bottom, top = torch.quantile(distance, low), torch.quantile(distance, high)
    if top - bottom < FLAT_RANGE:
        return torch.full_like(distance, (1.0 + min_weight) / 2.0)
    return min_weight + (1.0 - min_weight) * ((distance - bottom) / (top - bottom)).clamp(0.0, 1.0)
