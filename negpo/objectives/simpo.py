"""SimPO, preference optimisation without a reference, arXiv 2405.14734."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    complete_pairs,
    mean_over,
    require_positive,
    row_mean,
    softplus,
    token_stats,
)


def simpo_loss(
    chosen_logps: Tensor,
    chosen_mask: Tensor,
    rejected_logps: Tensor,
    rejected_mask: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> tuple[Tensor, Stats]:
    """SimPO, arXiv 2405.14734 Eq. 6: a logistic loss on length-normalised log-probs with a target margin.

        L = mean_b softplus(-(beta (s_w - s_l) - gamma)),   s = (1/|y|) sum_t lp_t

    Chosen tensors (B, Tw), rejected tensors (B, Tl), masks bool. Per-sequence means, mean over pairs with tokens on
    both sides. ``gamma`` stands outside the product with beta (the paper reports gamma / beta as well).

    Gradient weight with ``c = beta sigma(gamma - beta (s_w - s_l)) / B``: ``-c/|y_w|`` per chosen token, ``+c/|y_l|``
    per rejected token. As beta -> 0 this is symmetric REDI up to a constant factor.

    Caveat: nothing ties the policy to where it started; the learning rate does that alone.

    Returns the loss, token statistics prefixed ``chosen_`` and ``rejected_``, ``mean_margin`` (s_w - s_l),
    ``mean_weight`` (mean of B c) and ``accuracy``.
    """
    require_positive(beta=beta)
    (chosen,) = clean(chosen_mask, mask_name="chosen_mask", chosen_logps=chosen_logps)
    (rejected,) = clean(rejected_mask, mask_name="rejected_mask", rejected_logps=rejected_logps)
    if len(chosen) != len(rejected):
        raise ValueError(f"chosen has {len(chosen)} rows and rejected {len(rejected)}, expected pairs: the same number")
    pairs = complete_pairs(chosen_mask, rejected_mask, "chosen_mask, rejected_mask")
    margin = row_mean(chosen, chosen_mask) - row_mean(rejected, rejected_mask)  # (B,)
    loss = mean_over(softplus(gamma - beta * margin), pairs)
    with torch.no_grad():
        stats = token_stats(chosen, chosen_mask, "chosen_") | token_stats(rejected, rejected_mask, "rejected_")
        stats |= {
            "mean_margin": mean_over(margin, pairs),
            "mean_weight": mean_over(beta * torch.sigmoid(gamma - beta * margin), pairs),
            "accuracy": mean_over((margin > 0).to(margin.dtype), pairs),
        }
    return loss, stats
