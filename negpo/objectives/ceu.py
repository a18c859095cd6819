"""CE-U, cross-entropy unlearning, arXiv 2503.01224 (as in open-unlearning)."""

import torch
from torch import Tensor

from negpo.objectives._common import Stats, clean, token_mean, token_stats


def ceu_loss(
    logps: Tensor,
    log_complement: Tensor,
    mask: Tensor,
    *,
    rest_entropy: Tensor | None = None,
    skip_first: int = 1,
) -> tuple[Tensor, Stats]:
    """CE-U: cross-entropy to the model's own distribution with the label taken out.

        L = (1/N) sum_t CE(q_t, p_t),   q_t = softmax(sg[z_t] with z_y = -inf)
          = (1/N) sum_t [ -log(1 - p_t) + H(q_t) ]                     (H(q) is a constant in the gradient)

    ``logps``, ``log_complement`` = log(1 - p_t), ``rest_entropy`` = H(q_t): (B, T); ``mask`` (B, T) bool. The last two
    are ``negpo.logprobs.statistics.Complement``; without ``rest_entropy`` the value is that of unlikelihood,
    ``-(1/N) sum log(1 - p_t)``, with the same gradient. ``skip_first``: answer tokens left out at the start of each row
    (open-unlearning's ``ignore_first_n_answer_tokens``, default 1). Token mean over the batch; no reference.

    Gradient: ``dL/dlog_complement_t = -1/N``; on the logits ``+p_t/N`` at the label and ``-p_t q_v/N`` elsewhere, at
    most 1/N. Nothing flows through ``logps``, which is read for the statistics only.

    Caveats: as a function of log p alone the weight p/((1-p)N) is unbounded, and clamping it would leave memorised
    tokens alone, the opposite of the method: hence log(1 - p) as an input of its own. No retain term is published. Rows
    of at most ``skip_first`` tokens teach nothing.

    Raises ValueError when ``skip_first`` leaves no token in the batch. Returns the loss, token statistics and
    ``mean_weight`` (mean of p_t, the size of the logit gradient).
    """
    if skip_first < 0:
        raise ValueError(f"skip_first is {skip_first}, expected a number of tokens >= 0")
    entropy = torch.zeros_like(logps) if rest_entropy is None else rest_entropy
    logps, log_complement, entropy = clean(mask, logps=logps, log_complement=log_complement, rest_entropy=entropy)
    counted = mask & (mask.cumsum(-1) > skip_first)  # (B, T)
    if not counted.any():
        raise ValueError(f"skip_first={skip_first} leaves no token in a batch of {int(mask.sum())}; lower it")
    loss = token_mean(entropy.detach() - log_complement, counted)
    stats = token_stats(logps, counted)
    return loss, stats | {"mean_weight": token_mean(logps.detach().exp(), counted)}
