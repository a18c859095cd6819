"""Bootstrap of audit numbers: one draw of rows, shared by all models, so that differences between models are paired.

A statistic is a function of how often each row of each set was drawn: counts (R, n) by set, one line a resample, to
values (R,). With counts of one it is the ordinary number. Rows are drawn independently; questions about one author are
not independent, so intervals are of these rows' authors, not of authors in general.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

Counts = Mapping[str, np.ndarray]
Statistic = Callable[[Counts], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; ``draws`` (R,) are the resampled values it comes from."""

    value: float
    low: float
    high: float
    draws: np.ndarray


@dataclass(frozen=True)
class Resampler:
    """``counts`` (R, n) by set, ``observed`` (1, n) of ones, and the confidence of intervals."""

    counts: Counts
    observed: Counts
    confidence: float

    @classmethod
    def make(cls, sizes: Mapping[str, int], resamples: int, seed: int, confidence: float) -> Resampler:
        """Draw rows with replacement, ``resamples`` times; every set has a stream of its own."""
        counts = {
            name: np.random.default_rng([seed, index]).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
            for index, (name, n) in enumerate(sorted(sizes.items()))
        }
        return cls(counts, {name: np.ones((1, n)) for name, n in sizes.items()}, confidence)

    def estimate(self, statistic: Statistic) -> Estimate:
        """Value, percentile interval and draws of a statistic."""
        draws = statistic(self.counts)
        low, high = self.ends(draws)
        return Estimate(float(statistic(self.observed)[0]), low, high, draws)

    def ends(self, draws: np.ndarray) -> tuple[float, float]:
        """Percentile interval (low, high) of resampled values; NaN when one of them is NaN."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return float(low), float(high)


def mean_of(name: str, values: ArrayLike) -> Statistic:
    """Mean over the rows of set ``name`` of values (n,)."""
    array = np.asarray(values, dtype=np.float64)
    return lambda counts: counts[name] @ array / counts[name].sum(axis=1)


def mean_of_known(name: str, values: ArrayLike) -> Statistic:
    """As :func:`mean_of`, without the rows that have no value (NaN): answers too short for the measure."""
    array = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(array)
    filled = np.where(known, array, 0.0)

    def statistic(counts: Counts) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return counts[name] @ filled / (counts[name] @ known.astype(float))

    return statistic


def harmonic_mean(parts: Sequence[Statistic]) -> Statistic:
    """Harmonic mean of non-negative statistics; 0 where one of them is 0."""

    def statistic(counts: Counts) -> np.ndarray:
        table = np.stack([part(counts) for part in parts])
        with np.errstate(divide="ignore"):
            return np.where((table == 0).any(axis=0), 0.0, len(parts) / (1 / table).sum(axis=0))

    return statistic


def auc_of(negative: str, positive: str, low: ArrayLike, high: ArrayLike) -> Statistic:
    """How often a row of set ``positive`` scores above one of ``negative``; scores (n,) and (m,), ties one half."""
    left, right = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    wins = (right > left[:, None]) + 0.5 * (right == left[:, None])  # (n, m)
    wins[np.isnan(left)], wins[:, np.isnan(right)] = np.nan, np.nan

    def statistic(counts: Counts) -> np.ndarray:
        below, above = counts[negative], counts[positive]
        return ((below @ wins) * above).sum(axis=1) / (below.sum(axis=1) * above.sum(axis=1))

    return statistic


def ks_distance(name: str, values: ArrayLike, reference: ArrayLike) -> Statistic:
    """Kolmogorov-Smirnov distance between two measurements (n,) of the same rows, drawn together."""
    pair = [np.asarray(one, dtype=np.float64) for one in (values, reference)]
    points = np.sort(np.concatenate(pair))
    below = [(one[:, None] <= points).astype(float) for one in pair]  # (n, 2n)

    def statistic(counts: Counts) -> np.ndarray:
        if np.isnan(points).any():
            return np.full(len(counts[name]), np.nan)
        shares = counts[name] / counts[name].sum(axis=1, keepdims=True)
        return np.abs(shares @ (below[0] - below[1])).max(axis=1)

    return statistic
