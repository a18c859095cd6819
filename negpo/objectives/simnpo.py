"""SimNPO: negative preference optimisation without a reference model, arXiv 2410.07163."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    mean_over,
    require_positive,
    row_mean,
    softplus,
    token_stats,
)


def simnpo_loss(logps: Tensor, mask: Tensor, *, beta: float = 2.5, gamma: float = 0.0) -> tuple[Tensor, Stats]:
    """SimNPO as released (OPTML-Group/Unlearn-Simple), arXiv 2410.07163.

        L = (2/beta) mean_b softplus(-beta (nll_b / |y_b| - gamma)),   nll_b = -sum_t lp_t

    ``logps`` (B, T), ``mask`` (B, T) bool. Per-sequence mean, then mean over rows that have tokens. The margin
    ``gamma`` stands inside the product with beta, as in the code; the paper prints it outside (equal at ``gamma =
    0``).

    Gradient weight: ``dL/dS_b = (1/B) (2/|y_b|) sigma(-beta (nll_b/|y_b| - gamma))``.

    Caveat: the weight is effectively zero as soon as the mean nll exceeds a few ``1/beta``, whether or not the row was
    ever known: at ``beta = 4.5`` a row with mean nll 3 keeps a weight of 1e-6.

    Returns the loss, token statistics and ``mean_weight`` (mean of 2 sigma(...), without the 1/|y|).
    """
    require_positive(beta=beta)
    (logps,) = clean(mask, logps=logps)
    rows = mask.any(-1)
    margin = beta * (-row_mean(logps, mask) - gamma)  # (B,)
    loss = 2.0 / beta * mean_over(softplus(-margin), rows)
    with torch.no_grad():
        stats = token_stats(logps, mask) | {"mean_weight": mean_over(2.0 * torch.sigmoid(-margin), rows)}
    return loss, stats
