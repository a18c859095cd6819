"""The KTO variant of the unlearning papers (arXiv 2404.05868, released code)."""

import torch
from torch import Tensor

from negpo.objectives._common import Stats, clean, mean_over, require_positive, softplus, token_stats


def kto_loss(
    logps: Tensor,
    ref_logps: Tensor,
    mask: Tensor,
    idk_logps: Tensor,
    ref_idk_logps: Tensor,
    idk_mask: Tensor,
    *,
    beta: float = 0.1,
    form: str = "log_sigmoid",
) -> tuple[Tensor, Stats]:
    """KTO on forget rows with "I don't know" rows as the batch's reference point, arXiv 2404.05868 as released.

        log_sigmoid:  L = 1 + (2/beta) mean_b softplus(-(z - beta r_b))        (the published runs)
        sigmoid:      L = 1 - (2/beta) mean_b sigma(z - beta r_b)
        z = sg[mean_b r(idk_b)],   r = sum_t (lp_t - lr_t)

    Forget tensors (B, T), idk tensors (B', T'), masks bool. Sequence sums, means over rows that have tokens.

    Gradient weight on a forget row: ``(1/B) 2 sigma(beta r - z)`` (log_sigmoid); z carries no gradient, so the idk rows
    need no backward pass.

    Caveat: not the KTO of arXiv 2402.01306 and not TRL's: z is the unscaled mean log-ratio of the micro-batch (four
    rows or fewer in the paper), it is not clamped at 0 and not multiplied by beta. It is noisy, and the loss depends
    on the batch size.

    Returns the loss, token statistics of the forget rows, ``mean_log_ratio``, ``mean_weight`` and ``z``.
    """
    require_positive(beta=beta)
    if form not in ("log_sigmoid", "sigmoid"):
        raise ValueError(f"form is {form!r}, expected 'log_sigmoid' or 'sigmoid'")
    logps, ref_logps = clean(mask, logps=logps, ref_logps=ref_logps)
    idk_logps, ref_idk_logps = clean(idk_mask, mask_name="idk_mask", idk_logps=idk_logps, ref_idk_logps=ref_idk_logps)
    rows = mask.any(-1)
    log_ratio = (logps - ref_logps.detach()).sum(-1)  # (B,)
    z = mean_over((idk_logps - ref_idk_logps).detach().sum(-1), idk_mask.any(-1)).to(log_ratio.dtype)
    surprise = beta * log_ratio - z  # (B,), > 0 while the forget row is still likelier than the idk rows became
    with torch.no_grad():
        sigmoid = torch.sigmoid(surprise)
    if form == "log_sigmoid":
        loss = 1.0 + 2.0 / beta * mean_over(softplus(surprise), rows)
        weight = 2.0 * sigmoid
    else:
        loss = 1.0 - 2.0 / beta * mean_over(torch.sigmoid(-surprise), rows)
        weight = 2.0 * sigmoid * (1.0 - sigmoid)
    stats = token_stats(logps, mask) | {
        "mean_log_ratio": mean_over(log_ratio.detach(), rows),
        "mean_weight": mean_over(weight, rows),
        "z": z,
    }
    return loss, stats
