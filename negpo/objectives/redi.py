"""REDI, reinforcement distillation with rejected traces, arXiv 2505.24850."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    complete_pairs,
    mean_over,
    require_non_negative,
    row_mean,
    token_stats,
)


def redi_loss(
    chosen_logps: Tensor,
    chosen_mask: Tensor,
    rejected_logps: Tensor,
    rejected_mask: Tensor,
    *,
    alpha: float = 0.8,
) -> tuple[Tensor, Stats]:
    """REDI, arXiv 2505.24850: likelihood up on the chosen trace, down on the rejected one, the latter weaker.

        L = mean_b [ -(1/|y_w|) sum_t lp_t(y_w) + alpha (1/|y_l|) sum_t lp_t(y_l) ]

    Chosen tensors (B, Tw), rejected tensors (B, Tl), masks bool. Per-sequence means, then mean over pairs with tokens
    on both sides. No reference, no beta, no clamp.

    Gradient weight: ``-1/(B |y_w|)`` per chosen token, ``+alpha/(B |y_l|)`` per rejected token, independent of the
    model. ``alpha = 0`` is supervised fine-tuning on per-sequence means.

    Caveats: unbounded below in the rejected part. ``alpha = 1`` at the published learning rate (1e-6) collapses; the
    paper keeps alpha = 0.8 and tunes the learning rate. The reference divides by the length before truncation, this
    function by the tokens it sees.

    Returns the loss, token statistics prefixed ``chosen_`` and ``rejected_``, ``chosen_nll`` and ``rejected_nll``
    (means over pairs of the per-sequence means).
    """
    require_non_negative(alpha=alpha)
    (chosen,) = clean(chosen_mask, mask_name="chosen_mask", chosen_logps=chosen_logps)
    (rejected,) = clean(rejected_mask, mask_name="rejected_mask", rejected_logps=rejected_logps)
    if len(chosen) != len(rejected):
        raise ValueError(f"chosen has {len(chosen)} rows and rejected {len(rejected)}, expected pairs: the same number")
    pairs = complete_pairs(chosen_mask, rejected_mask, "chosen_mask, rejected_mask")
    chosen_nll = mean_over(-row_mean(chosen, chosen_mask), pairs)
    rejected_nll = mean_over(-row_mean(rejected, rejected_mask), pairs)
    with torch.no_grad():
        stats = token_stats(chosen, chosen_mask, "chosen_") | token_stats(rejected, rejected_mask, "rejected_")
        stats |= {"chosen_nll": chosen_nll.detach(), "rejected_nll": rejected_nll.detach()}
    return chosen_nll - alpha * rejected_nll, stats
