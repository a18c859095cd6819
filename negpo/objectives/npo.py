"""Negative preference optimisation, arXiv 2404.05868."""

import torch
from torch import Tensor

from negpo.objectives._common import Stats, clean, mean_over, require_positive, softplus, token_stats


def npo_loss(logps: Tensor, ref_logps: Tensor, mask: Tensor, *, beta: float = 0.1) -> tuple[Tensor, Stats]:
    """NPO, arXiv 2404.05868 Eq. 3: DPO with the winner deleted.

        L = (2/beta) mean_b log(1 + (pi/pi_ref)^beta) = (2/beta) mean_b softplus(beta r_b),   r_b = sum_t (lp_t - lr_t)

    ``logps``, ``ref_logps`` (B, T), ``mask`` (B, T) bool. Sequence sums; mean over rows that have tokens. No gradient
    flows into ``ref_logps``.

    Gradient weight: ``dL/dS_b = (1/B) 2 sigma(beta r_b)``, in (0, 2/B): 1/B at the start, towards 0 once the row is
    forgotten. ``beta -> 0`` gives sum-reduced gradient ascent, ``L - (2/beta) log 2 -> mean_b r_b``.

    Caveats: at ``pi == pi_ref`` the value is ``(2/beta) log 2`` (13.86 at 0.1), so only differences mean something. The
    weight saturates on the sum: a long answer is switched off after a small drop per token. Plain NPO still destroys
    utility; the published results add a retain term.

    Returns the loss, token statistics, ``mean_log_ratio`` (mean r) and ``mean_weight`` (mean of 2 sigma(beta r)).
    """
    require_positive(beta=beta)
    logps, ref_logps = clean(mask, logps=logps, ref_logps=ref_logps)
    rows = mask.any(-1)
    log_ratio = (logps - ref_logps.detach()).sum(-1)  # (B,)
    loss = 2.0 / beta * mean_over(softplus(beta * log_ratio), rows)
    with torch.no_grad():
        stats = token_stats(logps, mask) | {
            "mean_log_ratio": mean_over(log_ratio, rows),
            "mean_weight": mean_over(2.0 * torch.sigmoid(beta * log_ratio), rows),
        }
    return loss, stats
