"""LiPO-λ, listwise preference optimisation, arXiv 2402.01878."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    mean_over,
    require_positive,
    require_shape,
    softplus,
    token_stats,
)


def lipo_loss(
    logps: Tensor, ref_logps: Tensor, mask: Tensor, psi: Tensor, *, beta: float = 0.05
) -> tuple[Tensor, Stats]:
    """LiPO-lambda, arXiv 2402.01878v3: pairwise logistic losses over a list, weighted by what a swap costs in DCG.

        L = mean_lists sum_{psi_i > psi_j} Delta_ij softplus(-(s_i - s_j)),   s_i = beta sum_t (lp_t - lr_t)
        Delta_ij = |2^psi_i - 2^psi_j| |1/log(1 + tau_i) - 1/log(1 + tau_j)|,   tau = 1-based rank of s, descending

    ``logps``, ``ref_logps`` (P, K, T), ``mask`` (P, K, T) bool, ``psi`` (P, K) label of each response in [0, 1] (mean
    pairwise win probability). Sequence sums; responses without tokens and equal labels form no pair; mean over lists
    that hold a pair.

    Gradient weight on ``s_i - s_j``: ``-Delta_ij sigma(-(s_i - s_j))``; Delta is a constant in the gradient.

    Caveat: Delta changes when two scores swap ranks, so the loss jumps there. Natural logarithm as printed; log2 would
    only rescale. Published rates assume list size 8.

    Returns the loss, token statistics, ``pairs``, ``mean_weight`` (mean Delta over pairs) and ``accuracy``.
    """
    require_positive(beta=beta)
    logps, ref_logps = clean(mask, axes="(P, K, T)", logps=logps, ref_logps=ref_logps)
    require_shape("psi", psi, tuple(mask.shape[:2]), "(P, K), one label per response")
    present = mask.any(-1)  # (P, K)
    psi = torch.where(present, psi.to(logps), 0.0)
    scores = beta * (logps - ref_logps.detach()).sum(-1)  # (P, K)
    preferred = (psi.unsqueeze(-1) > psi.unsqueeze(-2)) & present.unsqueeze(-1) & present.unsqueeze(-2)  # (P, K, K)
    lists = preferred.any(-1).any(-1)
    if not lists.any():
        raise ValueError(f"psi of shape {tuple(psi.shape)} orders no two responses that have tokens, expected one pair")
    delta = _swap_cost(scores.detach(), psi, present)
    difference = scores.unsqueeze(-1) - scores.unsqueeze(-2)  # (P, K, K), s_i - s_j
    terms = torch.where(preferred, delta * softplus(-difference), 0.0)
    loss = mean_over(terms.sum((-1, -2)), lists)
    with torch.no_grad():
        pairs = preferred.sum()
        stats = token_stats(logps, mask) | {
            "pairs": pairs.to(logps.dtype),
            "mean_weight": torch.where(preferred, delta, 0.0).sum() / pairs,
            "accuracy": (preferred & (difference > 0)).sum() / pairs,
        }
    return loss, stats


def _swap_cost(scores: Tensor, psi: Tensor, present: Tensor) -> Tensor:
    """Delta (P, K, K): change of DCG when responses i and j swap ranks. Absent responses rank last."""
    order = scores.masked_fill(~present, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1) + 1  # (P, K), 1 = highest score
    discount = 1.0 / torch.log1p(rank.to(scores.dtype))
    gain = torch.exp2(psi)
    return (gain.unsqueeze(-1) - gain.unsqueeze(-2)).abs() * (discount.unsqueeze(-1) - discount.unsqueeze(-2)).abs()
