"""D²O, distributional dispreference optimisation, arXiv 2403.03419."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    complete_pairs,
    mean_over,
    require_non_negative,
    row_mean,
    softplus,
    token_stats,
)


def d2o_loss(
    sample_logps: Tensor,
    sample_mask: Tensor,
    rejected_logps: Tensor,
    rejected_mask: Tensor,
    ref_sample_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 0.1,
) -> tuple[Tensor, Stats]:
    """D²O, arXiv 2403.03419 Eq. 3: one dispreferred answer against K of the model's own samples.

        L = mean_b softplus(-u_b),   u = (beta/K) sum_i s_i - alpha l
        s_i = sum_t (lp_t - lr_t) of sample i,   l = the same of the rejected answer

    Sample tensors (B, K, T), rejected tensors (B, T'), masks bool. Sequence sums; K counts the prompt's samples that
    have tokens; mean over prompts with a rejected answer and at least one sample. ``ref_sample_logps`` may come from a
    harmful reference and ``ref_rejected_logps`` from a helpful one; one frozen initial model serves both. No gradient
    flows into either.

    Gradient weight with ``c = sigma(-u)/B``: ``dL/dS(y_i) = -c beta/K``, ``dL/dS(y_l) = +c alpha``. K = 1 with
    ``alpha = beta`` is DPO with the self-sample as winner; ``beta = 0`` is NPO without its 2/alpha.

    Caveats: the samples are treated as given (no gradient through sampling). Sums are not length-matched: a rejected
    answer much shorter than the samples shifts u. The paper's K, alpha, beta and reduction could not be confirmed.

    Returns the loss, token statistics prefixed ``sample_`` and ``rejected_``, ``mean_sample_log_ratio``,
    ``mean_rejected_log_ratio`` and ``mean_weight`` (mean of sigma(-u)).
    """
    require_non_negative(alpha=alpha, beta=beta)
    samples, ref_samples = clean(
        sample_mask,
        axes="(B, K, T)",
        mask_name="sample_mask",
        sample_logps=sample_logps,
        ref_sample_logps=ref_sample_logps,
    )
    rejected, ref_rejected = clean(
        rejected_mask, mask_name="rejected_mask", rejected_logps=rejected_logps, ref_rejected_logps=ref_rejected_logps
    )
    if len(samples) != len(rejected):
        raise ValueError(
            f"samples for {len(samples)} prompts but {len(rejected)} rejected rows, expected the same number"
        )
    sampled = sample_mask.any(-1)  # (B, K)
    prompts = complete_pairs(sampled, rejected_mask, "sample_mask, rejected_mask")
    sample_ratio = row_mean((samples - ref_samples.detach()).sum(-1), sampled)  # (B,), mean over the prompt's samples
    rejected_ratio = (rejected - ref_rejected.detach()).sum(-1)  # (B,)
    u = beta * sample_ratio - alpha * rejected_ratio
    loss = mean_over(softplus(-u), prompts)
    with torch.no_grad():
        stats = token_stats(samples, sample_mask, "sample_") | token_stats(rejected, rejected_mask, "rejected_")
        stats |= {
            "mean_sample_log_ratio": mean_over(sample_ratio, prompts),
            "mean_rejected_log_ratio": mean_over(rejected_ratio, prompts),
            "mean_weight": mean_over(torch.sigmoid(-u), prompts),
        }
    return loss, stats
