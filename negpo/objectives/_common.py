"""What every objective needs: validation, masking that survives NaN, means, log-space helpers, statistics.

Masking is done once, on entry, with ``torch.where``: a multiplication by zero would let a NaN or an infinity that
stands under padding reach the loss (``0 * nan = nan``), and its gradient with it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Stats = dict[str, Tensor]

LOG_CONFIDENT = math.log(0.99)  # tokens above p = 0.99 are counted as memorised in the statistics
MAX_LOG_RATIO = 20.0  # as in ResRL's code; beyond it exp() would soon overflow and poison the clipped branch's gradient


def require_shape(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """Raises ``ValueError`` that names the shape seen and the shape expected."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)} = {meaning}")


def require_positive(**values: float) -> None:
    """Raises ``ValueError`` for a hyper-parameter that divides or scales and is not a positive finite number."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}, expected a finite number > 0")


def require_non_negative(**values: float) -> None:
    """Raises ``ValueError`` for a weight or exponent that is negative or not finite."""
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}, expected a finite number >= 0")


def require_mask(mask: Tensor, *, axes: str = "(B, T)", mask_name: str = "mask") -> None:
    """Raises ``ValueError`` unless ``mask`` is bool, has the named axes and holds at least one True."""
    ndim = axes.count(",") + 1
    if mask.dtype != torch.bool:
        raise ValueError(f"{mask_name} has dtype {mask.dtype}, expected torch.bool (True on completion tokens)")
    if mask.ndim != ndim:
        raise ValueError(f"{mask_name} has shape {tuple(mask.shape)}, expected {ndim} axes {axes}")
    if not mask.any():
        raise ValueError(f"{mask_name} of shape {tuple(mask.shape)} is False everywhere, expected at least one token")


def clean(mask: Tensor, *, axes: str = "(B, T)", mask_name: str = "mask", **named: Tensor) -> list[Tensor]:
    """The named tensors, in order, with 0 wherever ``mask`` is False and all in the dtype of the first.

    float32 and float64 are kept; half precision is raised to float32, because p close to 1 is where these objectives
    live and bfloat16 rounds it to 1 from p = 0.998 on.
    """
    require_mask(mask, axes=axes, mask_name=mask_name)
    for name, tensor in named.items():
        require_shape(name, tensor, tuple(mask.shape), f"{axes}, the shape of {mask_name}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected floating-point log-probabilities")
    dtype = torch.promote_types(next(iter(named.values())).dtype, torch.float32)
    return [torch.where(mask, tensor.to(dtype), 0.0) for tensor in named.values()]


def row_vector(name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    """Checks that a per-sequence tensor is (B,), so that no (B,) x (B, T) broadcast can happen by accident."""
    require_shape(name, tensor, (mask.shape[0],), "(B,), one value per sequence")
    return tensor.to(mask.device)


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over True positions / number of True positions of the whole batch; 0 where there is none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each row's own True positions, (..., T) -> (...); 0 for a row without any."""
    return torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def mean_over(values: Tensor, rows: Tensor) -> Tensor:
    """Mean over the rows (or pairs, or groups) that take part; the others leave numerator and denominator."""
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp(min=1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) without the linear cut at x = 20 of ``F.softplus``, whose slope is off by 2e-9 there."""
    return -F.logsigmoid(-x)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact to rounding on both sides of -log 2; -inf at x = 0."""
    near_zero = x > -math.log(2.0)
    # Each branch gets an argument that is harmless where the other one is chosen.
    return torch.where(
        near_zero,
        torch.log(-torch.expm1(torch.where(near_zero, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x))),
    )


def complete_pairs(first_mask: Tensor, second_mask: Tensor, names: str) -> Tensor:
    """(B,) bool: pairs with tokens on both sides. Half a pair compares nothing, so it does not enter the mean."""
    rows = first_mask.any(-1) & second_mask.any(-1)
    if not rows.any():
        raise ValueError(f"no pair has tokens on both sides ({names}), expected at least one")
    return rows


@torch.no_grad()
def token_stats(logps: Tensor, mask: Tensor, prefix: str = "") -> Stats:
    """Under the mask: ``tokens``, ``mean_logp``, ``mean_prob``, ``confident_share`` (share of tokens with p > 0.99)."""
    return {
        f"{prefix}tokens": mask.sum().to(logps.dtype),
        f"{prefix}mean_logp": token_mean(logps, mask),
        f"{prefix}mean_prob": token_mean(logps.exp(), mask),
        f"{prefix}confident_share": token_mean((logps > LOG_CONFIDENT).to(logps.dtype), mask),
    }


@torch.no_grad()
def sign_stats(logps: Tensor, old_logps: Tensor, positive: Tensor, negative: Tensor, clipped: Tensor) -> Stats:
    """Token count, mean log-prob, mean ratio and clip fraction, apart for tokens pushed up and tokens pushed down.

    ``positive``, ``negative`` and ``clipped`` are (B, T) bool and already exclude padding. Means over no token are 0.
    """
    ratio = (logps - old_logps).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    stats: Stats = {}
    for name, chosen in (("positive", positive), ("negative", negative)):
        stats[f"{name}_tokens"] = chosen.sum().to(logps.dtype)
        stats[f"{name}_mean_logp"] = token_mean(logps, chosen)
        stats[f"{name}_mean_ratio"] = token_mean(ratio, chosen)
        stats[f"{name}_clip_fraction"] = token_mean(clipped.to(logps.dtype), chosen)
    return stats
