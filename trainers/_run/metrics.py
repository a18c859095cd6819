"""Numbers for the log history, collected on the device without waiting for it and averaged when they are logged."""

import math
from collections import defaultdict
from typing import Any

import torch

LOG_99 = math.log(0.99)
DEAD = 1e-3


class LogBuffer:
    """Weighted means since the last log. ``add`` keeps tensors; ``drain`` sums over processes and empties it."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = defaultdict(float)
        self._weights: dict[str, Any] = defaultdict(float)

    def add(self, name: str, total: torch.Tensor, weight: torch.Tensor | float) -> None:
        """Add ``total``, a sum over ``weight`` items. Weight 0 marks a plain count, reported as a sum."""
        self._sums[name] = self._sums[name] + total.detach().double()
        self._weights[name] = self._weights[name] + weight

    def drain(self, accelerator) -> dict[str, float]:
        names = sorted(self._sums)
        if not names:
            return {}
        pairs = [[float(self._sums[name]), float(self._weights[name])] for name in names]
        totals = torch.tensor(pairs, dtype=torch.float32, device=accelerator.device)
        if accelerator.num_processes > 1:
            totals = accelerator.reduce(totals, reduction="sum")
        self._sums.clear()
        self._weights.clear()
        return {
            name: total / weight if weight else total
            for name, (total, weight) in zip(names, totals.tolist(), strict=True)
        }

    def add_tokens(self, part: str, logps: torch.Tensor, mask: torch.Tensor) -> None:
        """``part/logp`` (mean log-prob), ``part/p_above_99`` (share of tokens with p > 0.99), ``part/tokens``."""
        logps, n = logps.detach(), mask.sum()
        self.add(f"{part}/logp", torch.where(mask, logps, 0.0).sum(), n)
        self.add(f"{part}/p_above_99", (mask & (logps > LOG_99)).sum(), n)
        self.add(f"{part}/tokens", n, 0.0)

    def add_log_ratio(self, part: str, logps: torch.Tensor, ref_logps: torch.Tensor, mask: torch.Tensor) -> None:
        """``part/log_ratio``: mean over rows of log pi(y|x) - log pi_ref(y|x), sums over the row's tokens."""
        gap = torch.where(mask, logps.detach() - ref_logps, 0.0)
        self.add(f"{part}/log_ratio", gap.sum(), float(len(gap)))

    def add_weights(self, part: str, gradient: torch.Tensor, mask: torch.Tensor, unit: torch.Tensor) -> None:
        """From ``gradient`` = dL/dlogp (B, T) and ``unit``, the number of items the objective averages over.

        ``part/grad_weight`` is the mean of ``unit * dL/dlogp``: 1 for gradient ascent, 2 sigma(beta r) for NPO.
        ``part/dead_rows`` is the share of rows in which no token has a weight above 0.001: they teach nothing any more.
        """
        weight = torch.where(mask, gradient, 0.0) * unit
        self.add(f"{part}/grad_weight", weight.sum(), mask.sum())
        self.add(f"{part}/dead_rows", (weight.abs().amax(-1) < DEAD).sum(), float(len(weight)))
