"""PDU, primal-dual unlearning by logit flattening under a retain constraint, arXiv 2506.05314."""

from torch import Tensor

from negpo.objectives._common import (
    Stats,
    clean,
    mean_over,
    require_non_negative,
    row_mean,
    token_mean,
)


def pdu_loss(spread: Tensor, mask: Tensor, *, per_row: bool = False) -> tuple[Tensor, Stats]:
    """The forget term of PDU, arXiv 2506.05314: flatten the distribution until its peak is its mean.

        L = (1/N) sum_t d_t^2,   d_t = max_v z_tv - mean_v z_tv = max_v log p_tv - mean_v log p_tv

    ``spread`` (B, T) is d (``negpo.logprobs.statistics.Spread``), ``mask`` (B, T) bool, True where it counts.
    Token mean over the batch, the released code; ``per_row=True`` averages each answer first (1/|y|), the paper.

    Gradient: ``dL/dd_t = 2 d_t/N``; on the logits ``2 d_t (1[v = argmax] - 1/V)/N``, which does not vanish with
    confidence. Values are of order 100 for a language model, hence the published retain weight of 100.

    Caveat: the target is the uniform distribution, at which a model says nothing sensible: without the retain
    constraint (``dual_update``) it destroys the model.

    Returns the loss and ``tokens``, ``mean_spread``.
    """
    (spread,) = clean(mask, spread=spread)
    squared = spread.square()
    loss = mean_over(row_mean(squared, mask), mask.any(-1)) if per_row else token_mean(squared, mask)
    tokens = mask.sum().to(spread.dtype)
    return loss, {"tokens": tokens, "mean_spread": token_mean(spread.detach(), mask)}


def dual_update(multiplier: float, retain_loss: float, *, bound: float, step: float) -> float:
    """``max(0, lambda + step (R - eps))``: the multiplier of the constraint ``R <= eps`` after one dual step.

    ``retain_loss``: R of the optimiser batch, in nats per token; ``bound``: eps. The step's own total,
    ``F + lambda (R - eps)``, uses lambda *before* this update.

    Raises ValueError for a negative multiplier, bound or step.
    """
    require_non_negative(multiplier=multiplier, bound=bound, step=step)
    return max(0.0, multiplier + step * (retain_loss - bound))
