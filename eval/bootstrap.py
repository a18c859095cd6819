"""Bootstrap intervals, all percentile intervals and all seeded: of rows, and of rows in clusters.

`resampled_means` draws independent rows (problems of a benchmark, items of an attack). `estimate` draws in levels:
clusters (the seeds of an experiment) with replacement, then rows within every drawn cluster, then, where a value is the
share of right answers among a few and the rows alone do not carry that scatter, the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from negpo.eval.statistics import vector

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # (draws, C) means of columns -> (draws,)


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its central interval (95 % unless said otherwise)."""

    value: float
    low: float
    high: float

    def text(self, form: str = "{:+.3f}") -> str:
        """`value (low to high)`."""
        return f"{form.format(self.value)} ({form.format(self.low)} to {form.format(self.high)})"


@dataclass(frozen=True)
class Estimate(Interval):
    """Mean over clusters with its interval, and the value of every cluster."""

    seeds: tuple[float, ...] = ()


def interval(draws: Floats, value: float, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap draws around a point estimate."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean of independent values (N,), by SciPy; seeded, where MUSE's own logger is not.

    Raises:
        ValueError: no value, or more than one dimension.
    """
    array = vector(values, "values")
    if len(array) == 1:
        return float(array[0]), float(array[0])
    result = stats.bootstrap(
        (array,), np.mean, confidence_level=confidence, n_resamples=resamples, method="percentile", rng=seed
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def resampled_means(rows: Floats, draws: int, seed: int = 0) -> Floats:
    """(draws, C) means of (N, C) `rows` drawn with replacement, the same rows for all columns."""
    return _means(rows, None, draws, np.random.default_rng(seed))


def _means(rows: Floats, answers: ArrayLike | None, draws: int, rng: np.random.Generator) -> Floats:
    """(draws, C): how often each row was drawn, times the rows; columns with `answers` > 0 draw those anew."""
    count = len(rows)
    times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    means = times @ rows / count
    for column, sampled in enumerate([] if answers is None else np.asarray(answers)):
        if sampled:
            successes = rng.binomial(times * sampled, rows[:, column])
            means[:, column] = successes.sum(1) / (sampled * count)
    return means


def clustered_means(
    clusters: Sequence[Floats], *, answers: ArrayLike | None = None, draws: int = 4000, seed: int = 0
) -> Floats:
    """(S, draws, C) column means of the S clusters of every draw; with one cluster only its rows are drawn.

    Args:
        clusters: S tables (N_s, C) without empty ones; rows are what differs within a cluster, columns are paired.
        answers: (C,) number of answers that each value of a column is a share of; 0 leaves the value as it is.
    """
    rng = np.random.default_rng(seed)
    means = np.empty((len(clusters), draws, clusters[0].shape[1]))
    for slot in means:
        chosen = rng.integers(len(clusters), size=draws)
        for index, table in enumerate(clusters):
            here = np.flatnonzero(chosen == index)
            slot[here] = _means(table, answers, len(here), rng)
    return means


def first_column(means: Floats) -> Floats:
    return means[:, 0]


def estimate(
    clusters: Sequence[Floats],
    statistic: Statistic = first_column,
    *,
    answers: ArrayLike | None = None,
    pooled: bool = False,
    draws: int = 4000,
) -> Estimate:
    """Mean over clusters of `statistic` of column means, or with `pooled` `statistic` of the means over clusters.

    The two differ where the statistic is not linear: a ratio within each seed, or a ratio of means over seeds.

    Args:
        clusters: see `clustered_means`. Empty tables do not count; if all are empty, the estimate is NaN.
    """
    tables = [table for table in clusters if len(table)]
    if not tables:
        return Estimate(np.nan, np.nan, np.nan, ())
    points = np.stack([table.mean(0) for table in tables])[:, None]  # (S, 1, C)
    means = clustered_means(tables, answers=answers, draws=draws)

    def combine(values: Floats) -> Floats:
        return statistic(values.mean(0)) if pooled else np.mean([statistic(one) for one in values], axis=0)

    found = interval(combine(means), combine(points)[0])
    return Estimate(found.value, found.low, found.high, tuple(float(statistic(one)[0]) for one in points))
