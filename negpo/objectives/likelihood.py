"""Likelihood and its negation: supervised fine-tuning on retain rows, gradient ascent on forget rows.

GA as an unlearning baseline: arXiv 2401.06121 (TOFU); reduction as in Hugging Face ``outputs.loss``.
"""

from torch import Tensor

from negpo.objectives._common import Stats, clean, token_mean, token_stats


def nll_loss(logps: Tensor, mask: Tensor) -> tuple[Tensor, Stats]:
    """Negative log-likelihood, token mean over the batch: ``L = -(1/N) sum_t lp_t``, N = labelled tokens of the batch.

    ``logps`` (B, T) log-probabilities of the labels, ``mask`` (B, T) bool. Gradient weight: ``dL/dlp_t = -1/N``.

    Caveat: it is a mean over tokens, not over sequences, so long rows weigh more; the mean of two micro-batch losses
    equals the loss of the joined batch only when both hold the same number of tokens.

    Returns the loss and ``tokens``, ``mean_logp``, ``mean_prob``, ``confident_share``.
    """
    (logps,) = clean(mask, logps=logps)
    return -token_mean(logps, mask), token_stats(logps, mask)


def ga_loss(logps: Tensor, mask: Tensor) -> tuple[Tensor, Stats]:
    """Gradient ascent, the negated token-mean likelihood: ``L = (1/N) sum_t lp_t`` (arXiv 2401.06121).

    ``logps`` (B, T), ``mask`` (B, T) bool. Gradient weight: ``dL/dlp_t = 1/N`` for every token whatever its
    probability.

    Caveat: unbounded below. Nothing slows it down on tokens already forgotten, so the model collapses within some tens
    of steps (arXiv 2404.05868, Theorem 2); use it as a baseline or with very few steps.

    Returns the loss and ``tokens``, ``mean_logp``, ``mean_prob``, ``confident_share``.
    """
    loss, stats = nll_loss(logps, mask)
    return -loss, stats
