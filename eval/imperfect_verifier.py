"""What resampling against an imperfect verifier buys ("Inference Scaling FLaws", arXiv 2411.17501).

Samples are drawn until a weak verifier passes one, at most k times; if none passes, the problem is left unanswered. A
strict verifier then says what the passing sample was worth. More tries never lower the share of right answers, but they
turn abstentions into answers, and on hard problems most of those are false positives: once a false positive costs
something, the best k is finite and may be small.

Per problem, of n samples a pass both verifiers and b pass the weak one only. The first passing sample of a random
k-subset is any of the a + b with equal chance, so with A = C(n - a - b, k) / C(n, k)

    answered(k)    1 - A
    right(k)       a / (a + b) * (1 - A)
    utility(k)     (a - price * b) / (a + b) * (1 - A)      right = 1, false positive = -price, unanswered = 0

are unbiased for every k <= n. Intervals resample problems only, as those of pass@k do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from negpo.eval.bootstrap import Interval, interval, resampled_means
from negpo.eval.metrics import pass_at_k
from negpo.eval.passk import check_k

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FirstPass:
    """Accuracy and utility of the first passing sample within k tries, one entry per k.

    `accuracy` is the share of answered problems that are answered rightly (nan where none is), `best_k` the k with the
    highest utility and `best_k_low`, `best_k_high` the 2.5 and 97.5 % quantiles of it over resampled problems.
    """

    ks: tuple[int, ...]
    price: float
    answered: tuple[Interval, ...]
    right: tuple[Interval, ...]
    accuracy: tuple[Interval, ...]
    utility: tuple[Interval, ...]
    best_k: int
    best_k_low: int
    best_k_high: int
    problems: int


def first_pass_curves(n: ArrayLike, both: ArrayLike, weak_only: ArrayLike, ks: Sequence[int]) -> tuple[Floats, Floats]:
    """(P, K) unbiased probabilities, per problem and k, of a right answer and of a false positive.

    Args:
        n: (P,) samples per problem whose two verdicts are known.
        both: (P,) samples that pass the weak and the strict verifier.
        weak_only: (P,) samples that pass the weak verifier alone: false positives.
        ks: K values, none above the smallest n.

    Raises:
        ValueError: counts that cannot be, or a k above the smallest n.
    """
    n, both, weak_only = np.asarray(n), np.asarray(both), np.asarray(weak_only)
    if not len(n) == len(both) == len(weak_only) or len(n) == 0:
        raise ValueError(f"{len(n)}, {len(both)} and {len(weak_only)} problems: pass the same, non-empty list of each")
    passing = both + weak_only
    if (both < 0).any() or (weak_only < 0).any() or (passing > n).any():
        row = int(np.argmax((both < 0) | (weak_only < 0) | (passing > n)))
        raise ValueError(f"problem {row}: {both[row]} and {weak_only[row]} passing samples of {n[row]}")
    check_k(n, ks)
    answered = np.stack([np.asarray(pass_at_k(n, passing, k), dtype=np.float64) for k in ks], axis=1)
    share = np.divide(both, passing, out=np.zeros(len(n)), where=passing > 0)[:, None]
    return share * answered, (1 - share) * answered


def first_pass(
    n: ArrayLike,
    both: ArrayLike,
    weak_only: ArrayLike,
    ks: Sequence[int],
    *,
    price: float = 0.0,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> FirstPass:
    """Curves over k with bootstrap intervals over problems.

    Args:
        n, both, weak_only, ks: as in `first_pass_curves`.
        price: what a false positive costs, in units of a right answer; not negative.

    Raises:
        ValueError: as in `first_pass_curves`, or a negative price.
    """
    if not price >= 0:
        raise ValueError(f"price is {price}; a false positive cannot be worth more than no answer")
    right, wrong = first_pass_curves(n, both, weak_only, ks)
    stacked = resampled_means(np.concatenate([right, wrong], axis=1), draws, seed)
    right_draws, wrong_draws = np.split(stacked, 2, axis=1)
    rights, wrongs = right.mean(0), wrong.mean(0)
    utility, utility_draws = rights - price * wrongs, right_draws - price * wrong_draws
    best = np.asarray(ks)[utility_draws.argmax(1)]
    low, high = np.quantile(best, [(1 - level) / 2, (1 + level) / 2], method="nearest")

    def intervals(values: Floats, resampled: Floats) -> tuple[Interval, ...]:
        return tuple(interval(resampled[:, i], values[i], level) for i in range(len(ks)))

    return FirstPass(
        ks=tuple(ks),
        price=price,
        answered=intervals(rights + wrongs, right_draws + wrong_draws),
        right=intervals(rights, right_draws),
        accuracy=intervals(_share(rights, wrongs), _share(right_draws, wrong_draws)),
        utility=intervals(utility, utility_draws),
        best_k=int(ks[int(utility.argmax())]),
        best_k_low=int(low),
        best_k_high=int(high),
        problems=len(right),
    )


def _share(right: Floats, wrong: Floats) -> Floats:
    total = right + wrong
    return np.divide(right, total, out=np.full_like(total, np.nan), where=total > 0)
