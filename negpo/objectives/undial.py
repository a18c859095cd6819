"""UNDIAL, unlearning by self-distillation on lowered logits, arXiv 2402.10052."""

import torch
from torch import Tensor

from negpo.objectives._common import Stats, clean, require_non_negative, token_mean, token_stats


def undial_loss(
    logps: Tensor, rest_cross_entropy: Tensor, ref_log_odds: Tensor, mask: Tensor, *, beta: float = 10.0
) -> tuple[Tensor, Stats]:
    """UNDIAL, arXiv 2402.10052: cross-entropy to the reference whose label logit is lowered by beta.

        L = (1/N) sum_t CE(q_t, p_t),   q_t = softmax(z_ref - beta onehot(y_t))
          = (1/N) sum_t [ w_t K_t - (1 - w_t) lp_t ],   w_t = sigma(beta - o_t)

    with ``K_t = -sum_{v != y} q0_v log p_v`` (``rest_cross_entropy``; q0 = the reference without the label)
    and ``o_t = log p_ref(y) - log(1 - p_ref(y))`` (``ref_log_odds``), both from
    ``negpo.logprobs.statistics.RestCrossEntropy``; all (B, T), ``mask`` (B, T) bool. This mixture of two positive terms
    is the same number as ``[KL(ref||p) + H(ref) + a lp] / (1 - a)`` with ``a = p_ref(y)(1 - e^-beta)``, which cancels
    at memorised tokens. No gradient flows into the reference. Token mean.

    Gradient on the logits: ``(p - q)/N``; ``dL/dlp_t = -(1 - w_t)/N``, ``dL/dK_t = w_t/N``.

    Caveats: ``beta = 0`` is plain self-distillation (gradient 0 at ``p == p_ref``); ``beta -> inf`` takes the label
    out, CE-U's target from a frozen model. The floor is H(q) > 0. The released code indexes the vocabulary with label
    -100 and so distils every prompt and padding position too (see docs/open_unlearning.md).

    Returns the loss, token statistics and ``mean_weight`` (mean of w: the share of the target that is not the label).
    """
    require_non_negative(beta=beta)
    logps, rest, odds = clean(mask, logps=logps, rest_cross_entropy=rest_cross_entropy, ref_log_odds=ref_log_odds)
    odds = odds.detach()
    away, stay = torch.sigmoid(beta - odds), torch.sigmoid(odds - beta)
    # A label that the policy holds impossible has log-prob -inf; where the target does not want it, 0 * inf is 0.
    loss = token_mean(away * rest - torch.where(stay > 0, stay * logps, 0.0), mask)
    return loss, token_stats(logps, mask) | {"mean_weight": token_mean(away, mask)}
