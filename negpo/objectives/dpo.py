"""Direct preference optimisation, arXiv 2305.18290; with ``scale = 2/beta`` the IdkDPO of the unlearning papers."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    complete_pairs,
    mean_over,
    require_positive,
    softplus,
    token_stats,
)


def dpo_loss(
    chosen_logps: Tensor,
    chosen_mask: Tensor,
    rejected_logps: Tensor,
    rejected_mask: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    scale: float = 1.0,
) -> tuple[Tensor, Stats]:
    """DPO, arXiv 2305.18290 Eq. 7, times ``scale``.

        L = scale * mean_b softplus(-beta (r_w - r_l)),   r = sum_t (lp_t - lr_t) of the chosen (w) and rejected (l) row

    Chosen tensors (B, Tw), rejected tensors (B, Tl), masks bool. Sequence sums; mean over pairs with tokens on both
    sides. No gradient flows into the reference. IdkDPO (arXiv 2404.05868 Eq. 2 as coded): ``scale=2/beta``, chosen is
    the "I don't know" answer.

    Gradient weight with ``c = scale beta sigma(-beta (r_w - r_l)) / B``: ``dL/dS_l = +c``, ``dL/dS_w = -c``.

    Caveat: only the difference counts; both likelihoods can fall together. Sums favour short chosen answers.

    Returns the loss, token statistics prefixed ``chosen_`` and ``rejected_``, ``mean_chosen_log_ratio``,
    ``mean_rejected_log_ratio``, ``mean_log_ratio`` (r_w - r_l), ``mean_weight`` (mean of B c) and ``accuracy``.
    """
    require_positive(beta=beta, scale=scale)
    chosen, ref_chosen = clean(
        chosen_mask, mask_name="chosen_mask", chosen_logps=chosen_logps, ref_chosen_logps=ref_chosen_logps
    )
    rejected, ref_rejected = clean(
        rejected_mask, mask_name="rejected_mask", rejected_logps=rejected_logps, ref_rejected_logps=ref_rejected_logps
    )
    if len(chosen) != len(rejected):
        raise ValueError(f"chosen has {len(chosen)} rows and rejected {len(rejected)}, expected pairs: the same number")
    pairs = complete_pairs(chosen_mask, rejected_mask, "chosen_mask, rejected_mask")
    chosen_ratio = (chosen - ref_chosen.detach()).sum(-1)  # (B,)
    rejected_ratio = (rejected - ref_rejected.detach()).sum(-1)  # (B,)
    difference = chosen_ratio - rejected_ratio
    loss = scale * mean_over(softplus(-beta * difference), pairs)
    with torch.no_grad():
        stats = token_stats(chosen, chosen_mask, "chosen_") | token_stats(rejected, rejected_mask, "rejected_")
        stats |= {
            "mean_chosen_log_ratio": mean_over(chosen_ratio, pairs),
            "mean_rejected_log_ratio": mean_over(rejected_ratio, pairs),
            "mean_log_ratio": mean_over(difference, pairs),
            "mean_weight": mean_over(scale * beta * torch.sigmoid(-beta * difference), pairs),
            "accuracy": mean_over((difference > 0).to(difference.dtype), pairs),
        }
    return loss, stats
