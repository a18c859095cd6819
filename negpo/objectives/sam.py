"""Sharpness-aware minimisation of a forget term, arXiv 2502.05374 (SAM: arXiv 2010.01412)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from negpo.objectives._common import require_non_negative


def sam_perturbation(gradients: Sequence[Tensor | None], *, rho: float) -> list[Tensor | None]:
    """``e = rho g / ||g||`` with one Euclidean norm over all gradients; entries without a gradient stay None.

    The forget gradient is then taken at ``theta + e``, where the forget loss is (to first order) largest within a ball
    of radius rho, and applied at theta: what is unlearned there does not come back with the first fine-tuning step.
    ``rho = 0`` and a gradient of norm 0 give no perturbation. Raises ValueError for a negative rho, RuntimeError for a
    gradient that is not finite.
    """
    require_non_negative(rho=rho)
    present = [g.detach() for g in gradients if g is not None]
    if not present:
        raise ValueError("no parameter has a gradient, expected at least one")
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.double()) for g in present]))
    if not torch.isfinite(norm):
        raise RuntimeError(f"the norm of the forget gradient is {norm.item()}, so no direction can be taken from it")
    scale = rho / norm.item() if norm > 0 else 0.0
    return [None if g is None else g.detach() * scale for g in gradients]


@contextmanager
def perturbed(parameters: Sequence[Tensor], perturbation: Sequence[Tensor | None]) -> Iterator[None]:
    """Parameters moved by ``perturbation`` inside; outside they are what they were, bit for bit (a copy is kept).

    Adding and subtracting would not restore half-precision weights.
    """
    moved = [(p, e) for p, e in zip(parameters, perturbation, strict=True) if e is not None]
    kept = [p.detach().clone() for p, _ in moved]
    try:
        with torch.no_grad():
            for parameter, e in moved:
                parameter.add_(e.to(parameter.dtype))
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(moved, kept, strict=True):
                parameter.copy_(value)
