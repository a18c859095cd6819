"""Staying close to the reference on retain data: the KL term of NPO+KL, GA+KL and DPO+KL."""

import torch
from torch import Tensor

from negpo.objectives._common import Stats, require_shape


def retain_kl(logps_full: Tensor, ref_logps_full: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Stats]:
    """KL(ref || policy), mean over positions: ``L = (1/M) sum_{b,t} sum_v p_ref (log p_ref - log p)``.

    ``logps_full``, ``ref_logps_full`` (B, T, V) log-softmaxed over the vocabulary; ``mask`` (B, T) bool or None. With
    None every position counts, prompt and padding included, as in the released code of arXiv 2404.05868; with a mask
    only True positions. No gradient flows into the reference.

    Gradient: ``dL/dlogp_{t,v} = -p_ref(v)/M`` for normalised rows, hence ``(p - p_ref)/M`` on the logits.

    Caveats: the paper defines the opposite direction KL(policy || ref); all released code computes this one. Over all
    positions the value shrinks with padding. The tensors hold the vocabulary: training uses the tiled version in
    ``negpo.logprobs`` and this one is its definition.

    Returns the loss and ``positions``, ``mean_kl``.
    """
    if logps_full.ndim != 3:
        raise ValueError(f"logps_full has shape {tuple(logps_full.shape)}, expected 3 axes (B, T, V)")
    require_shape("ref_logps_full", ref_logps_full, tuple(logps_full.shape), "(B, T, V), the shape of logps_full")
    logps = logps_full.to(torch.promote_types(logps_full.dtype, torch.float32))
    reference = ref_logps_full.detach().to(logps.dtype)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask has dtype {mask.dtype}, expected torch.bool")
        require_shape("mask", mask, tuple(logps.shape[:2]), "(B, T)")
        if not mask.any():
            raise ValueError(f"mask of shape {tuple(mask.shape)} is False everywhere, expected at least one position")
        logps, reference = logps[mask], reference[mask]  # (M, V)
    possible = reference > -torch.inf  # 0 log 0 = 0: tokens the reference excludes add nothing
    terms = torch.where(possible, reference.exp() * (torch.where(possible, reference, 0.0) - logps), 0.0)
    positions = terms.numel() // terms.shape[-1]
    loss = terms.sum() / positions
    return loss, {"positions": loss.new_tensor(float(positions)), "mean_kl": loss.detach()}
