"""U2A, unlearning to align: which forget samples help an alignment objective, and how much, arXiv 2504.06659."""

import torch
from torch import Tensor

from negpo.objectives._common import require_non_negative, require_shape

SIGNS = ("released", "descent")


def u2a_scores(alignment_gradient: Tensor, sample_gradients: Tensor, *, curvature: float = 1.0) -> Tensor:
    """``d_i = <grad J, grad l_i> / g``: first-order effect of unlearning sample i on the alignment loss J.

    ``alignment_gradient`` (D,) flattened gradient of J; ``sample_gradients`` (N, D) gradients of the unlearning losses
    l_i; ``curvature`` g stands for the inverse Hessian (1, the identity, in the release). Returns (N,).

    One descent step of size h on l_i changes J by ``-h g d_i + O(h^2)``: large positive d_i helps, and the release
    keeps the largest 1024. arXiv 2504.06659; the formula is read from the released code.

    Caveat: first order at the current parameters; scores go stale as training moves on. A NaN score is an error here,
    because top-k would put it first (the release replaces it by 1e-6).
    """
    if alignment_gradient.ndim != 1:
        raise ValueError(f"alignment_gradient has shape {tuple(alignment_gradient.shape)}, expected (D,)")
    expected = (sample_gradients.shape[0], alignment_gradient.shape[0])
    require_shape("sample_gradients", sample_gradients, expected, "(N, D)")
    scores = sample_gradients @ alignment_gradient / curvature
    if scores.isnan().any():
        raise ValueError(
            f"scores of samples {scores.isnan().nonzero().flatten().tolist()} are NaN, expected finite gradients"
        )
    return scores


def u2a_update_weights(weights: Tensor, scores: Tensor, *, eta: float = 1e-2, sign: str = "descent") -> Tensor:
    """Mirror-descent step over the kept samples: ``w_i <- n w_i exp(s eta d_i) / sum_j w_j exp(s eta d_j)``.

    ``weights`` (N,) >= 0, zero for samples not kept; ``scores`` (N,) from ``u2a_scores``; n = number of kept samples.
    Zero weights stay zero and the kept ones sum to n, so they average 1.

    ``sign="descent"`` (s = +1) lowers the alignment loss: unlearning sample i changes J by ``-d_i``, so helpful samples
    gain weight. ``sign="released"`` (s = -1) is what the released code does: it takes weight away from the samples it
    selected for being helpful. Use it only to reproduce the release.

    Caveat: the first update also rescales (the release starts from 1/1024); under AdamW that scale hardly matters.
    """
    require_non_negative(eta=eta)
    if sign not in SIGNS:
        raise ValueError(f"sign is {sign!r}, expected one of {SIGNS}")
    if weights.ndim != 1:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (N,)")
    require_shape("scores", scores, tuple(weights.shape), "(N,), one score per weight")
    kept = weights > 0
    if (weights < 0).any() or not kept.any():
        raise ValueError(f"weights range over [{weights.min()}, {weights.max()}], expected >= 0 and at least one > 0")
    direction = 1.0 if sign == "descent" else -1.0
    exponents = torch.where(kept, weights.log() + direction * eta * scores.to(weights), -torch.inf)
    return kept.sum() * torch.softmax(exponents, dim=0)
