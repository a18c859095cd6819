"""AUC, the Kolmogorov-Smirnov floor, standard errors and intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negpo.eval import statistics as s

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=8)


@given(negative=SCORES, positive=SCORES)
def test_auc_is_the_share_of_pairs_in_the_right_order(negative, positive):
    pairs = [(p > n) + 0.5 * (p == n) for n in negative for p in positive]
    assert s.roc_auc(negative, positive) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auc_ranks_infinities_and_does_not_hide_nan():
    assert s.roc_auc([-np.inf, 0.0], [np.inf]) == 1.0
    assert math.isnan(s.roc_auc([np.nan], [1.0]))
    with pytest.raises(ValueError, match="empty"):
        s.roc_auc([], [1.0])


@pytest.mark.parametrize(("n", "floor"), [(40, 1.86e-23), (200, 1.94e-119), (300, 1.48e-179), (400, 1.06e-239)])
def test_separated_samples_hit_the_published_floor_and_say_so(n, floor):
    result = s.ks_test(np.zeros(n), np.ones(n))
    assert result.p_value == pytest.approx(floor, rel=5e-3)
    assert result.floor
    assert result.statistic == 1.0
    assert result.log10_p == pytest.approx(math.log10(result.p_value))
    assert not s.ks_test(np.arange(n), np.arange(n)).floor


def test_log_p_stays_finite_where_p_underflows():
    result = s.ks_test(np.zeros(2000), np.ones(2000))
    assert result.p_value == 0.0
    assert -1210 < result.log10_p < -1200


def test_lm_eval_standard_errors_match_the_reference(load_fixture):
    data = load_fixture("eval/stderr_aggregation.json")
    tasks = list(data["tasks"].values())
    sizes = [task["n"] for task in tasks]
    for task in tasks:
        correct = int(task["sum_correct"])
        values = np.r_[np.ones(correct), np.zeros(task["n"] - correct)]
        assert s.mean_stderr(values) == pytest.approx(task["stderr"], rel=1e-12)
    accuracies, errors = [task["acc"] for task in tasks], [task["stderr"] for task in tasks]
    assert s.weighted_mean(accuracies, sizes) == pytest.approx(data["group_acc_weighted"], rel=1e-12)
    assert s.pooled_stderr(errors, sizes) == pytest.approx(data["group_stderr"], rel=1e-12)
    published = data["published_check"]
    group = s.weighted_mean([published["bio"], published["chem"], published["cyber"]], sizes)
    assert group == pytest.approx(published["group_recomputed"], rel=1e-12)
