"""Softmax statistics over a vocabulary that arrives in tiles (online softmax, arXiv 1805.02867)."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningSoftmax:
    """Per-token statistics of p = softmax(z) for n tokens.

    ``peak`` is the largest logit so far, ``total`` = Σ exp(z - peak), and with ``moments`` 1 or 2 also
    ``first`` = Σ exp(x) x and ``second`` = Σ exp(x) x² for x = z - peak. Moments are taken about the peak because that
    is where the probability mass is: nothing large cancels. When a tile raises the peak by -d, all sums are moved:
    x becomes x + d, which multiplies every exponential by exp(d).
    """

    def __init__(self, like: Tensor, moments: int = 0):
        n = like.shape[0]
        self.peak = like.new_full((n,), float("-inf"))
        self.total = like.new_zeros(n)
        self.first = like.new_zeros(n) if moments >= 1 else None
        self.second = like.new_zeros(n) if moments >= 2 else None

    def update(self, rows: slice, tile: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in logits ``tile`` (rows, columns) and overwrites them.

        Returns exp(z - peak) (rows, columns) and the factor (rows,) by which sums of earlier exponentials shrink.
        """
        old_peak, old_total = self.peak[rows], self.total[rows]
        peak = torch.maximum(old_peak, tile.amax(1))
        shrink = (old_peak - peak).exp_()
        x = tile.sub_(peak.unsqueeze(1))
        if self.first is None:
            exponentials = x.exp_()
        else:
            exponentials = x.exp()
            self._move_moments(rows, (old_peak - peak).nan_to_num(neginf=0.0), shrink)
            weighted = exponentials * x
            self.first[rows] += weighted.sum(1)
            if self.second is not None:
                self.second[rows] += weighted.mul_(x).sum(1)
        self.total[rows] = old_total * shrink + exponentials.sum(1)
        self.peak[rows] = peak
        return exponentials, shrink

    def _move_moments(self, rows: slice, d: Tensor, shrink: Tensor) -> None:
        assert self.first is not None
        total, first = self.total[rows], self.first[rows]
        if self.second is not None:
            self.second[rows] = shrink * (self.second[rows] + 2 * d * first + d * d * total)
        self.first[rows] = shrink * (first + d * total)

    def log_z(self) -> Tensor:
        """(n,) log Σ exp(z)."""
        return self.peak + self.total.log()

    def entropy(self) -> Tensor:
        """(n,) -Σ p log p, which is also minus the mean of log p over the vocabulary."""
        assert self.first is not None
        return self.total.log() - self.first / self.total

    def variance(self) -> Tensor:
        """(n,) Σ p (log p)² - (Σ p log p)²."""
        assert self.first is not None
        assert self.second is not None
        return self.second / self.total - (self.first / self.total).square()
