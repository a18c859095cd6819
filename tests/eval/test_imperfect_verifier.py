"""Resampling against an imperfect verifier: exact counts by enumeration, identities with pass@k, finite best k."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negpo.eval.imperfect_verifier import first_pass, first_pass_curves
from negpo.eval.metrics import pass_at_k


def enumerated(n, a, b, k):
    """Probability of (right, false positive) by walking through every order of every k-subset."""
    labels = ["both"] * a + ["weak"] * b + ["fail"] * (n - a - b)
    right = wrong = total = 0
    for subset in combinations(range(n), k):
        for order in permutations(subset):
            first = next((labels[i] for i in order if labels[i] != "fail"), None)
            right, wrong, total = right + (first == "both"), wrong + (first == "weak"), total + 1
    return right / total, wrong / total


@pytest.mark.parametrize(("n", "a", "b"), [(5, 0, 0), (5, 2, 1), (5, 0, 3), (4, 4, 0), (5, 1, 4)])
def test_the_estimate_is_the_mean_over_all_orders_of_all_subsets(n, a, b):
    for k in range(1, n + 1):
        right, wrong = first_pass_curves([n], [a], [b], [k])
        assert (right.item(), wrong.item()) == pytest.approx(enumerated(n, a, b, k), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=6))
def test_a_perfect_verifier_gives_pass_at_k_and_answers_never_exceed_one(counts):
    both = np.array([a for a, _ in counts])
    n, ks = np.full(len(both), 16), [1, 2, 5, 16]
    right, wrong = first_pass_curves(n, both, np.zeros_like(both), ks)
    assert np.allclose(right, np.stack([pass_at_k(n, both, k) for k in ks], 1))
    assert not wrong.any()
    right, wrong = first_pass_curves(n, both, np.array([b for _, b in counts]), ks)
    assert ((right + wrong) <= 1 + 1e-12).all()
    assert (np.diff(right, axis=1) >= -1e-12).all()


def test_with_infinitely_many_samples_it_is_the_closed_form():
    p, q, n = 0.3, 0.2, 100_000
    right, _ = first_pass_curves([n], [int(p * n)], [int(q * n)], [1, 4])
    assert right[0] == pytest.approx([p, p / (p + q) * (1 - (1 - p - q) ** 4)], abs=1e-4)


def test_false_positives_that_cost_make_the_best_k_finite_and_free_ones_do_not():
    easy, hard = ([64] * 20, [40] * 20, [1] * 20), ([64] * 20, [0] * 20, [4] * 20)
    n, both, weak = (np.array(x + y) for x, y in zip(easy, hard, strict=True))
    ks = [1, 2, 4, 8, 16, 32, 64]
    free, dear = first_pass(n, both, weak, ks), first_pass(n, both, weak, ks, price=1.0)
    assert free.utility[-1].value == max(x.value for x in free.utility)
    assert dear.best_k < 16
    assert dear.best_k_low <= dear.best_k <= dear.best_k_high
    assert [x.value for x in free.accuracy] == sorted((x.value for x in free.accuracy), reverse=True)
    assert all(x.low <= x.value <= x.high for x in (*dear.utility, *dear.right, *dear.answered))


def test_impossible_counts_and_prices_are_refused_with_the_problem():
    with pytest.raises(ValueError, match="problem 1: 3 and 2 passing samples of 4"):
        first_pass_curves([4, 4], [1, 3], [1, 2], [1])
    with pytest.raises(ValueError, match="needs 8 samples"):
        first_pass_curves([4], [1], [1], [8])
    with pytest.raises(ValueError, match="price is -1"):
        first_pass([4], [1], [1], [1], price=-1.0)
