"""pass@k, avg@k and maj@k with intervals, and the difference between two runs.

All functions take one entry per problem and return float64. pass@k is the unbiased estimator of Chen et al.
(arXiv 2107.03374), 1 - C(n - c, k) / C(n, k); a problem may have its own n, and k must not exceed the smallest.

Two sources of error are kept apart. *Sampling*: the same problems, other samples: `analytic_stderr`. *Problems*:
another set of the same kind, which matters when a benchmark has 30: `bootstrap` resamples problems. The scatter between
their estimates already holds the sampling error, so samples are not resampled too; that would count it twice, and pull
pass@k down where k is near n, because a lone correct sample is left out of a third of the draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from negpo.eval.bootstrap import Floats, interval, resampled_means
from negpo.eval.metrics import pass_at_k


def default_ks(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n itself."""
    powers = [2**i for i in range(n.bit_length()) if 2**i <= n]
    return powers if powers[-1] == n else [*powers, n]


def check_k(n: ArrayLike, ks: Sequence[int]) -> None:
    """Raise ValueError when some k needs more samples than a problem has."""
    fewest = int(np.min(np.asarray(n)))
    if too_large := [k for k in ks if k > fewest]:
        raise ValueError(
            f"pass@{too_large[0]} needs {too_large[0]} samples per problem, but one problem has {fewest}; "
            "draw more samples or lower k"
        )


@lru_cache(maxsize=64)
def _table(n: int, ks: tuple[int, ...]) -> Floats:
    """(n + 1, K): the estimate for every possible count of correct samples."""
    counts = np.arange(n + 1)
    return np.stack([np.asarray(pass_at_k(np.full(n + 1, n), counts, k), dtype=np.float64) for k in ks], axis=1)


def pass_at_k_curve(n: ArrayLike, c: ArrayLike, ks: Sequence[int]) -> Floats:
    """(P, K) estimates of one data set.

    Args:
        n: (P,) samples drawn per problem.
        c: (P,) correct ones among them.
        ks: K values, none above the smallest n.
    """
    n, c = np.asarray(n), np.asarray(c)
    check_k(n, ks)
    curve = np.empty((len(n), len(ks)))
    for size in np.unique(n):
        rows = n == size
        curve[rows] = _table(int(size), tuple(ks))[c[rows]]
    return curve


def analytic_stderr(n: ArrayLike, c: ArrayLike, ks: Sequence[int]) -> Floats:
    """(K,) standard error of the mean pass@k over other samples for the same problems.

    The estimator's variance for one problem is exact under c ~ Binomial(n, p); p is replaced by the posterior mean
    (c + 1/2) / (n + 1) of Jeffreys' prior, because c/n would call the answer certain whenever c is 0 or n.
    """
    from scipy.stats import binom

    n, c = np.asarray(n), np.asarray(c)
    check_k(n, ks)
    variance = np.zeros(len(ks))
    for size, correct in zip(n, c, strict=True):
        weights = binom.pmf(np.arange(size + 1), size, (correct + 0.5) / (size + 1))
        table = _table(int(size), tuple(ks))
        mean = weights @ table
        variance += weights @ (table - mean) ** 2
    return np.sqrt(variance) / len(n)


def bootstrap(n: ArrayLike, c: ArrayLike, ks: Sequence[int], *, draws: int = 2000, seed: int = 0) -> Floats:
    """(draws, K) means over problems that are drawn with replacement."""
    return resampled_means(pass_at_k_curve(n, c, ks), draws, seed)


@dataclass(frozen=True)
class Difference:
    """Run A minus run B at one k, over the problems both answered."""

    k: int
    value: float
    low: float
    high: float
    p_value: float
    problems: int


def paired_difference(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    ks: Sequence[int],
    *,
    draws: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Difference]:
    """Paired bootstrap over problems: each draw holds the same problems for both runs.

    Args:
        first, second: (n, c) of the two runs, aligned problem by problem.

    Returns:
        One Difference per k. `p_value` is two-sided: twice the share of draws beyond zero, at least 1/draws.
    """
    n_a, c_a = map(np.asarray, first)
    n_b, c_b = map(np.asarray, second)
    if len(n_a) != len(n_b):
        raise ValueError(f"the runs have {len(n_a)} and {len(n_b)} problems; align them problem by problem first")
    rows = pass_at_k_curve(n_a, c_a, ks) - pass_at_k_curve(n_b, c_b, ks)
    point, gaps = rows.mean(axis=0), resampled_means(rows, draws, seed)
    results = []
    for column, k in enumerate(ks):
        bounds = interval(gaps[:, column], point[column], level)
        tail = min((gaps[:, column] <= 0).mean(), (gaps[:, column] >= 0).mean())
        p_value = min(1.0, max(2 * float(tail), 1 / draws))
        results.append(Difference(k, bounds.value, bounds.low, bounds.high, p_value, len(n_a)))
    return results


def majority_vote(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> bool:
    """Whether the most frequent answer is right; ties go to the answer seen first, and no answer never wins a vote.

    The verdict of a group is that of its first sample, as in Qwen2.5-Math's evaluator.
    """
    votes: dict[Hashable, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            votes.setdefault(answer, []).append(index)
    if not votes:
        return False
    winner = max(votes.values(), key=lambda members: (len(members), -members[0]))
    return bool(correct[winner[0]])


def majority_at_k(
    answers: Sequence[Sequence[Hashable | None]],
    correct: Sequence[Sequence[bool]],
    k: int,
    *,
    orders: int = 32,
    seed: int = 0,
) -> Floats:
    """(P,) expected correctness of a majority vote over k samples.

    With k = n there is one vote, in sample order. For k < n the mean over `orders` random subsets is returned.
    """
    check_k([len(row) for row in answers], [k])
    rng = np.random.default_rng(seed)
    values = np.empty(len(answers))
    for problem, (row, marks) in enumerate(zip(answers, correct, strict=True)):
        if k == len(row):
            values[problem] = majority_vote(row, marks)
            continue
        picks = [sorted(rng.choice(len(row), size=k, replace=False)) for _ in range(orders)]
        values[problem] = np.mean([majority_vote([row[i] for i in p], [marks[i] for i in p]) for p in picks])
    return values
