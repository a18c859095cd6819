"""RMU, representation misdirection for unlearning, arXiv 2403.03218: works on hidden states, not on log-probs."""

import torch
from torch import Tensor

from negpo.objectives._common import Stats, mean_over, require_mask, require_shape, row_mean


def rmu_loss(hidden: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Stats]:
    """One term of RMU, arXiv 2403.03218: the squared distance of one layer's states to a target.

        L = mean_b (1/|y_b|) sum_t (1/H) || h_t - target_t ||^2

    ``hidden`` (B, T, H); ``mask`` (B, T) bool; ``target`` broadcasts to (B, T, H) and carries no gradient. RMU is
    ``rmu_loss(forget, c u, forget_mask) + alpha rmu_loss(retain, frozen, retain_mask)`` with c u from
    ``rmu_control_vector`` and the frozen model's states on retain text.

    Reduction: mean over the width, mean over each row's tokens, mean over rows that have tokens. (The original averages
    over padding too; open-unlearning means this one but multiplies two means through a broadcast.)

    Gradient: ``dL/dh_t = (2 / (B |y_b| H)) (h_t - target_t)``.

    Caveat: the value scales with the square of the layer's activations, so c and alpha do not transfer across layers or
    models.

    Returns the loss and ``tokens``, ``mean_norm`` (mean Euclidean norm of the states), ``mean_distance``.
    """
    if hidden.ndim != 3:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}, expected 3 axes (B, T, H)")
    try:
        target = target.detach().to(hidden.device).expand(hidden.shape)
    except RuntimeError as error:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, expected one that broadcasts to hidden {tuple(hidden.shape)}"
        ) from error
    require_mask(mask)
    require_shape("mask", mask, tuple(hidden.shape[:2]), "(B, T) of hidden")
    positions, width = mask.unsqueeze(-1), hidden.shape[-1]
    hidden = torch.where(positions, hidden.to(torch.promote_types(hidden.dtype, torch.float32)), 0.0)
    difference = hidden - torch.where(positions, target.to(hidden.dtype), 0.0)
    squared = difference.square().sum(-1)  # (B, T)
    loss = mean_over(row_mean(squared / width, mask), mask.any(-1))
    with torch.no_grad():
        stats = {
            "tokens": mask.sum().to(hidden.dtype),
            "mean_norm": hidden.norm(dim=-1).sum() / mask.sum(),
            "mean_distance": squared.sqrt().sum() / mask.sum(),
        }
    return loss, stats


def rmu_control_vector(width: int, *, scale: float, generator: torch.Generator | None = None) -> Tensor:
    """``c u`` of RMU, (H,) float32: u drawn once from U[0, 1)^H, normalised, times ``scale`` (c: 6.5 for Zephyr-7B)."""
    direction = torch.rand(width, generator=generator)
    return scale * direction / direction.norm()
