"""Building blocks of WPN, weighted positional N-pair learning, arXiv 2408.09459.

Only the blocks are known: position-weighted mean pooling and the N-pair loss. How the paper composes them (which texts,
which similarity, which terms are frozen) could not be confirmed, so nothing here is called WPN.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from negpo.objectives._common import Stats, require_mask, require_shape


def position_weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """``e = sum_i i h_i / sum_i i`` over the real tokens, i = 1, 2, ... (SGPT, arXiv 2202.08904).

    ``hidden`` (B, T, H), ``mask`` (B, T) bool. i counts real tokens, so left and right padding give the same result.
    Later tokens weigh more because a causal state has seen more. Returns (B, H); a row without tokens is an error,
    there is no such thing as its mean.
    """
    require_mask(mask)
    if hidden.ndim != 3:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}, expected 3 axes (B, T, H)")
    require_shape("mask", mask, tuple(hidden.shape[:2]), "(B, T) of hidden")
    if not mask.any(-1).all():
        raise ValueError(
            f"mask rows {(~mask.any(-1)).nonzero().flatten().tolist()} are False everywhere, expected tokens"
        )
    hidden = torch.where(mask.unsqueeze(-1), hidden, 0.0)
    weight = (mask.cumsum(-1) * mask).to(hidden.dtype)  # (B, T): 1, 2, 3, ... over real tokens
    return (weight.unsqueeze(-1) * hidden).sum(1) / weight.sum(-1, keepdim=True)


def n_pair_loss(anchors: Tensor, positives: Tensor, negatives: Tensor | None = None) -> tuple[Tensor, Stats]:
    """N-pair loss (Sohn, NeurIPS 2016): ``L = mean_j log(1 + sum_k exp(a_j . n_jk - a_j . p_j))``.

    ``anchors``, ``positives`` (N, H); ``negatives`` (N, K, H), or None: the other rows' positives, which makes the loss
    the softmax cross-entropy of the similarity matrix. Dot products, as in the original.

    Gradient on an anchor: ``sum_k w_k (n_k - p)``, ``w_k`` the softmax share of negative k. No negatives: 0.

    Caveat: dot products are not bounded; without normalised or regularised embeddings the loss can be lowered by
    growing norms alone.

    Returns the loss and ``accuracy`` (share of anchors whose positive beats every negative), ``mean_margin`` (positive
    minus best negative; 0 without negatives).
    """
    if anchors.ndim != 2:
        raise ValueError(f"anchors has shape {tuple(anchors.shape)}, expected 2 axes (N, H)")
    require_shape("positives", positives, tuple(anchors.shape), "(N, H), the shape of anchors")
    count, width = anchors.shape
    if negatives is None:
        similarity = anchors @ positives.T  # (N, N)
        positive = similarity.diagonal()
        others = ~torch.eye(count, dtype=torch.bool, device=anchors.device)
        negative = similarity[others].view(count, count - 1)
    else:
        if negatives.ndim != 3 or negatives.shape[0] != count or negatives.shape[2] != width:
            raise ValueError(
                f"negatives has shape {tuple(negatives.shape)}, expected ({count}, K, {width}) = (N, K, H)"
            )
        positive = (anchors * positives).sum(-1)
        negative = torch.einsum("nh,nkh->nk", anchors, negatives)
    excess = negative - positive.unsqueeze(-1)  # (N, K)
    loss = torch.logsumexp(F.pad(excess, (1, 0)), dim=-1).mean()  # the padded 0 is the 1 inside the logarithm
    with torch.no_grad():
        margin = -excess.amax(-1) if excess.shape[-1] else torch.zeros_like(positive)
        stats = {"accuracy": (excess < 0).all(-1).to(anchors.dtype).mean(), "mean_margin": margin.mean()}
    return loss, stats
