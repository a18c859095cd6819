"""Advantages from verifier rewards: GRPO, NGRPO, PSR/NSR/W-REINFORCE, RAFT, Reinforce-Rej.

Tensor in, tensor out. A NaN reward marks a response nobody could score: it gets advantage 0 and is left out of its
group's statistics. Statistics are computed in float64 and a constant group is exactly 0: in float32 the rounding error
of the mean, divided by a standard deviation of the same size, would otherwise look like an advantage.
"""

import torch
from torch import Tensor

from negpo.objectives._common import require_non_negative


def group_advantages(rewards: Tensor, *, ddof: int = 1, eps: float = 1e-6, scale: bool = True) -> Tensor:
    """GRPO, arXiv 2402.03300 Sec. 4.1 as coded in verl: ``A = (r - mean) / (std + eps)`` within each group.

    ``rewards`` (P, G), one row per prompt; returns (P, G). ``ddof=1`` sample standard deviation (verl, TRL), 0
    population (NFT's theory). ``scale=False`` keeps ``r - mean`` (Dr.GRPO, arXiv 2503.20783). TRL uses ``eps=1e-4``.

    A group of one has mean 0 and std 1 by convention, so A = r / (1 + eps), or r unscaled.

    Caveat: all-right and all-wrong groups give 0: no signal exactly where the model fails completely (see NGRPO).
    """
    return _standardise(_matrix(rewards), ddof=ddof, eps=eps, scale=scale).to(_float_dtype(rewards))


def ngrpo_advantages(rewards: Tensor, *, max_reward: float = 1.0, n_virtual: int = 1, eps: float = 1e-6) -> Tensor:
    """NGRPO, arXiv 2509.18851 Eq. 6 as coded: GRPO over the group plus ``n_virtual`` copies of ``max_reward``.

    ``rewards`` (P, G); returns (P, G) for the real samples only: ``A = (r - m) / (s + eps)``, m and s (ddof=1) over G
    + n_virtual values. All-wrong groups get ``-1/sqrt(G + 1)``, all-right groups 0; ``n_virtual=0`` is GRPO. A group
    of one gets no virtual sample and ``A = r / (1 + eps)``.

    Caveat: ``max_reward`` must be the largest reward that can occur; otherwise all-right groups are no longer 0 and
    good answers can turn negative. The quoted Eq. 6 divides by G + 1; code and figures use ddof=1, as here.
    """
    if n_virtual < 0:
        raise ValueError(f"n_virtual is {n_virtual}, expected >= 0")
    values = _matrix(rewards)
    size = values.shape[1]
    if size > 1:
        # Rounded like the rewards: in float32 a reward of 0.7 is not the double 0.7, and all-right must stay exactly 0.
        best = torch.tensor(max_reward, dtype=_float_dtype(rewards), device=values.device).double()
        values = torch.cat([values, best.expand(len(values), n_virtual)], dim=1)
    return _standardise(values, ddof=1, eps=eps, scale=True)[:, :size].to(_float_dtype(rewards))


def signed_advantages(rewards: Tensor, *, positive_weight: float = 0.1, negative_weight: float = 1.0) -> Tensor:
    """Constant advantages, arXiv 2506.01347 Eq. 9: ``+positive_weight`` if r == 1, else ``-negative_weight``.

    ``rewards`` (N,), returns (N,). PSR is (1, 0), NSR (0, 1), W-REINFORCE (0.1, 1, the defaults), REINFORCE (1, 1). NaN
    rewards get 0. The reference trains PSR and NSR only on the rows they use: mask the others, or the token mean keeps
    their tokens in its denominator.

    Caveats: never whiten these (constant advantages whiten to 0). NSR alone degrades after some hundred steps; the
    small positive weight is what prevents it.
    """
    if rewards.ndim != 1:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}, expected (N,)")
    require_non_negative(positive_weight=positive_weight, negative_weight=negative_weight)
    values = rewards.to(_float_dtype(rewards))
    signed = torch.full_like(values, -negative_weight).masked_fill(values == 1, positive_weight)
    return torch.where(values.isnan(), 0.0, signed)


def raft_advantages(rewards: Tensor) -> Tensor:
    """RAFT, arXiv 2504.11343 as coded: ``A = max(r, 0)``; (P, G) in and out.

    With ``clipped_policy_loss`` this is RAFT++ (its on-policy gradient is RAFT's). Caveat: the paper keeps the
    best-rewarded samples, which would train on wrong answers of an all-wrong prompt; the code, and this, keep r > 0.
    """
    return _matrix(rewards).clamp(min=0.0).nan_to_num(nan=0.0).to(_float_dtype(rewards))


def reinforce_rej_advantages(rewards: Tensor) -> Tensor:
    """Reinforce-Rej, arXiv 2504.11343 as coded: ``A = r`` where the group's rewards differ, else 0; (P, G) both.

    Caveat: feed rewards of +1 and -1. With 1/0 rewards, as the release has them, wrong answers get 0 and it becomes
    RAFT++ without the all-right prompts.
    """
    values = _matrix(rewards)
    mixed = ~_constant(values, ~values.isnan())
    return torch.where(mixed, values, 0.0).nan_to_num(nan=0.0).to(_float_dtype(rewards))


def _float_dtype(rewards: Tensor) -> torch.dtype:
    """The dtype advantages come back in: the rewards' own, float32 for integers, booleans and half precision."""
    return torch.promote_types(rewards.dtype, torch.float32)


def _matrix(rewards: Tensor) -> Tensor:
    """(P, G) float64 copy of the rewards."""
    if rewards.ndim != 2:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}, expected (P, G): prompts times samples per prompt")
    return rewards.to(torch.float64)


def _constant(values: Tensor, scored: Tensor) -> Tensor:
    """(P, 1) bool: all scored values of the row are equal (true for a row with fewer than two)."""
    highest = torch.where(scored, values, -torch.inf).amax(-1, keepdim=True)
    lowest = torch.where(scored, values, torch.inf).amin(-1, keepdim=True)
    return highest <= lowest


def _standardise(values: Tensor, *, ddof: int, eps: float, scale: bool) -> Tensor:
    """``(r - mean) / (std + eps)`` over the scored values of each row, (P, N) float64 in and out."""
    require_non_negative(eps=eps)
    scored = ~values.isnan()
    if values.shape[1] == 1:
        return torch.where(scored, values / (1.0 + eps) if scale else values, 0.0)
    count = scored.sum(-1, keepdim=True)
    mean = torch.where(scored, values, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    deviation = torch.where(scored & ~_constant(values, scored), values - mean, 0.0)
    if not scale:
        return deviation
    std = (deviation.square().sum(-1, keepdim=True) / (count - ddof).clamp(min=1)).sqrt()
    return torch.where(deviation == 0, 0.0, deviation / (std + eps))
