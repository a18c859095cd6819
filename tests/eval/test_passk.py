"""pass@k, its intervals, majority votes and paired differences."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negpo.eval import passk


def pass_at_k_by_enumeration(n: int, c: int, k: int) -> float:
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    return sum(any(subset) for subset in subsets) / len(subsets)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_the_curve_equals_counting_every_subset_of_k_samples(case):
    n, c, k = case
    curve = passk.pass_at_k_curve([n], [c], [k])
    assert curve[0, 0] == pytest.approx(pass_at_k_by_enumeration(n, c, k), abs=1e-12)


def test_problems_may_have_different_numbers_of_samples():
    curve = passk.pass_at_k_curve([4, 8], [1, 2], [1, 4])
    assert curve[:, 0] == pytest.approx([0.25, 0.25])
    assert curve[0, 1] == 1.0


def test_a_k_above_the_number_of_samples_is_refused():
    with pytest.raises(ValueError, match="pass@8 needs 8 samples per problem, but one problem has 4"):
        passk.pass_at_k_curve([16, 4], [1, 1], [1, 8])


def test_default_ks_are_powers_of_two_and_n_itself():
    assert passk.default_ks(1) == [1]
    assert passk.default_ks(16) == [1, 2, 4, 8, 16]
    assert passk.default_ks(20) == [1, 2, 4, 8, 16, 20]


def test_the_analytic_error_matches_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.2, 0.8, size=40)
    n, ks = np.full(40, 16), [1, 4]
    repeats = np.stack([passk.pass_at_k_curve(n, rng.binomial(16, p), ks).mean(axis=0) for _ in range(600)])
    claimed = passk.analytic_stderr(n, rng.binomial(16, p), ks)
    assert claimed == pytest.approx(repeats.std(axis=0), rel=0.15)


@pytest.mark.parametrize("k", [1, 8, 32])
def test_a_bootstrap_interval_covers_the_truth_about_as_often_as_it_says(k):
    rng = np.random.default_rng(1)
    truth = k / (k + 1)  # 1 - E[(1 - p)^k] for p uniform
    covered = 0
    for trial in range(300):
        p = rng.uniform(size=60)
        n, c = np.full(60, 32), rng.binomial(32, p)
        draws = passk.bootstrap(n, c, [k], draws=300, seed=trial)
        bounds = passk.interval(draws[:, 0], passk.pass_at_k_curve(n, c, [k]).mean())
        covered += bounds.low <= truth <= bounds.high
    # at k = n two problems in 60 are unsolved: the percentile bootstrap is known to be somewhat short near an edge
    assert (0.80 if k == 32 else 0.88) <= covered / 300 <= 0.99


def test_a_bootstrap_interval_lies_around_its_estimate_even_where_k_is_n():
    n, c = np.full(100, 64), np.tile([0, 1, 2, 60], 25)  # one lone correct sample in a quarter of the problems
    draws = passk.bootstrap(n, c, [64])[:, 0]
    assert draws.mean() == pytest.approx(0.75, abs=0.005)


def test_equal_runs_differ_by_zero_and_a_better_run_is_found():
    rng = np.random.default_rng(2)
    p = rng.uniform(0.1, 0.6, size=60)
    n = np.full(60, 16)
    a, b = rng.binomial(16, p), rng.binomial(16, np.minimum(p + 0.3, 1))
    same = passk.paired_difference((n, a), (n, a), [1], draws=400)[0]
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    better = passk.paired_difference((n, b), (n, a), [1], draws=400)[0]
    assert better.low > 0
    assert better.p_value <= 0.01


def test_runs_over_different_problems_are_not_compared():
    with pytest.raises(ValueError, match="3 and 2 problems"):
        passk.paired_difference(([1] * 3, [0] * 3), ([1] * 2, [0] * 2), [1])


def test_ties_go_to_the_answer_seen_first_and_no_answer_never_wins():
    assert passk.majority_vote(["7", "8"], [True, False])
    assert not passk.majority_vote(["8", "7"], [False, True])
    assert passk.majority_vote([None, None, "7"], [False, False, True])
    assert not passk.majority_vote([None], [False])


def test_majority_of_one_sample_is_the_mean_of_all():
    answers, correct = [["1", "1", "2", "3"]], [[True, True, False, False]]
    assert passk.majority_at_k(answers, correct, 1, orders=4000)[0] == pytest.approx(0.5, abs=0.03)
    assert passk.majority_at_k(answers, correct, 4)[0] == 1.0
