"""Intervals of resampled rows, and of rows within resampled clusters, against what statistics says of their width."""

import numpy as np
import pytest

from negpo.eval.bootstrap import bootstrap_interval, clustered_means, estimate, resampled_means


def test_bootstrap_intervals_are_seeded_and_hold_the_mean():
    values = np.random.default_rng(0).normal(size=50)
    low, high = bootstrap_interval(values, resamples=500)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values, resamples=500)
    assert bootstrap_interval([2.0]) == (2.0, 2.0)


def test_rows_scatter_by_the_standard_error_of_their_mean():
    rows = np.random.default_rng(0).normal(size=(80, 2))
    draws = resampled_means(rows, 4000)
    assert draws.std(0) == pytest.approx(rows.std(0) / np.sqrt(80), rel=0.05)


def test_equal_clusters_scatter_as_their_pooled_rows_do():
    """A cluster that is drawn twice gets new rows each time; the same rows twice would widen the interval by half."""
    rows = np.random.default_rng(0).normal(size=(60, 1))
    draws = clustered_means([rows, rows, rows]).mean(0)
    assert draws.std() == pytest.approx(rows.std() / np.sqrt(3 * 60), rel=0.05)


def test_clusters_that_differ_scatter_by_their_own_error():
    tables = [np.full((50, 1), level) for level in (0.0, 1.0, 2.0)]
    assert clustered_means(tables).mean(0).std() == pytest.approx(np.std([0, 1, 2]) / np.sqrt(3), rel=0.05)


def test_answers_behind_a_share_are_drawn_anew_where_asked():
    rates = np.full((400, 2), 0.5)
    draws = clustered_means([rates], answers=[8, 0])[0]
    assert draws[:, 0].std() == pytest.approx(np.sqrt(0.25 / (400 * 8)), rel=0.05)
    assert set(draws[:, 1]) == {0.5}


def test_a_ratio_can_be_taken_within_clusters_or_of_the_pooled_means():
    tables = [np.array([[1.0, 1.0]]), np.array([[3.0, 1.0]]), np.array([[4.0, 4.0]])]
    ratio = lambda means: means[:, 0] / means[:, 1]
    assert estimate(tables, ratio).value == pytest.approx((1 + 3 + 1) / 3)
    assert estimate(tables, ratio).seeds == (1.0, 3.0, 1.0)
    assert estimate(tables, ratio, pooled=True).value == pytest.approx((8 / 3) / 2)
