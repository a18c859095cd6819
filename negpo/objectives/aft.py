"""AFT, alignment fine-tuning on ranked reasoning traces, arXiv 2309.02144."""

import torch
from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    mean_over,
    require_non_negative,
    require_shape,
    row_mean,
    token_mean,
    token_stats,
)

VARIANTS = ("plain", "detached", "boundary")


def aft_loss(
    logps: Tensor,
    mask: Tensor,
    positive: Tensor,
    *,
    variant: str = "detached",
    beta: float = 0.15,
    sft_weight: float = 1.0,
) -> tuple[Tensor, Stats]:
    """AFT, arXiv 2309.02144 Sec. 4.3: likelihood on correct traces plus a contrast of mean log-probs per prompt.

        L = sft_weight * NLL(positives) + mean_prompts align,   s = (1/|y|) sum_t lp_t
        plain:     align = log(1 + sum_{p,n} exp(s_n - s_p))
        detached:  align = log(1 + sum_{p,n} exp(sg[s_n] - s_p))                               negatives get no gradient
        boundary:  align = log(1 + sum_{p,n} (exp(s_n - s_p) + exp(T_p - s_n))),   T_p = 2 B - sg[s_p],
                   B = min_p sg[s_p] - beta                                  negatives are not pushed far below B

    ``logps`` (P, K, T), ``mask`` (P, K, T) bool, ``positive`` (P, K) bool. NLL is a token mean over the positives'
    tokens; align averages over prompts that have both signs (prompts with one sign add nothing). ``beta`` is used by
    boundary.

    Gradient weight, plain: with ``w_pn = exp(s_n - s_p) / (1 + sum)``, ``dL/ds_p = -sum_n w_pn``, ``dL/ds_n = +sum_p
    w_pn``.

    Caveats: plain drives negatives to -infinity and degrades the model, which is why the paper adds the constraints.
    The exact form of T and B could not be confirmed against the paper.

    Returns the loss, token statistics, ``align_loss``, ``sft_loss``, ``mean_positive_score``, ``mean_negative_score``.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}, expected one of {VARIANTS}")
    require_non_negative(beta=beta, sft_weight=sft_weight)
    (logps,) = clean(mask, axes="(P, K, T)", logps=logps)
    require_shape("positive", positive, tuple(mask.shape[:2]), "(P, K), one flag per response")
    present = mask.any(-1)
    positive, negative = positive.bool() & present, ~positive.bool() & present  # (P, K)
    score = row_mean(logps, mask)  # (P, K)
    prompts = positive.any(-1) & negative.any(-1)
    align = mean_over(_contrast(score, positive, negative, variant, beta), prompts)
    sft = -token_mean(logps, mask & positive.unsqueeze(-1))
    stats = token_stats(logps, mask) | {
        "align_loss": align.detach(),
        "sft_loss": sft.detach(),
        "mean_positive_score": mean_over(score.detach(), positive),
        "mean_negative_score": mean_over(score.detach(), negative),
    }
    return sft_weight * sft + align, stats


def _contrast(score: Tensor, positive: Tensor, negative: Tensor, variant: str, beta: float) -> Tensor:
    """``log(1 + sum over (p, n) pairs)`` per prompt, (P,); 0 where a sign is missing. ``score`` (P, K)."""
    pairs = positive.unsqueeze(-1) & negative.unsqueeze(-2)  # (P, K, K), [p, n]
    push = score.detach() if variant == "detached" else score
    exponents = torch.where(pairs, push.unsqueeze(-2) - score.unsqueeze(-1), -torch.inf).flatten(1)
    if variant == "boundary":
        fixed = score.detach()
        floor = torch.where(positive, fixed, torch.inf).amin(-1, keepdim=True) - beta  # B, (P, 1)
        lower = (2.0 * floor - fixed).unsqueeze(-1) - score.unsqueeze(-2)  # T_p - s_n, (P, K, K)
        exponents = torch.cat([exponents, torch.where(pairs, lower, -torch.inf).flatten(1)], dim=-1)
    one = exponents.new_zeros(len(exponents), 1)  # e^0, the 1 inside the logarithm
    return torch.logsumexp(torch.cat([one, exponents], dim=-1), dim=-1)
