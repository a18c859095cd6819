"""Intervals of AUCs and detection rates at low false-positive rates, against their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negpo.eval import statistics as s
from negpo.eval.mia import attack_details

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=9)


@given(negative=SCORES, positive=SCORES)
def test_the_interval_is_delongs_on_the_logit_scale(negative, positive):
    """DeLong: with psi(n, p) = [p > n] + [p = n] / 2, the AUC is the mean of psi over pairs, and its variance is
    var_n(mean_p psi) / N + var_p(mean_n psi) / M with sample variances (ddof 1)."""
    psi = np.array([[(p > n) + 0.5 * (p == n) for p in positive] for n in negative])
    auc, low_high = psi.mean(), s.auc_interval(negative, positive)
    if auc in (0.0, 1.0):
        return
    variance = psi.mean(1).var(ddof=1) / len(negative) + psi.mean(0).var(ddof=1) / len(positive)
    reach = 1.959963984540054 * math.sqrt(variance) / (auc * (1 - auc))
    centre = math.log(auc / (1 - auc))
    expected = [1 / (1 + math.exp(-(centre + sign * reach))) for sign in (-1, 1)]
    assert low_high == pytest.approx(expected, abs=1e-9)


def test_about_95_of_100_intervals_hold_the_true_auc():
    """Normal scores one standard deviation apart: AUC = Phi(1 / sqrt 2)."""
    truth, rng, inside = 0.7602499389065233, np.random.default_rng(0), 0
    for _ in range(400):
        low, high = s.auc_interval(rng.normal(size=40), rng.normal(1, size=40))
        inside += low <= truth <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_separated_scores_do_not_claim_certainty():
    low, high = s.auc_interval(np.zeros(100), np.ones(100))
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 100))
    assert s.auc_interval(np.ones(100), np.zeros(100)) == pytest.approx((0.0, 1 - low))
    assert s.auc_interval([0.0], [1.0, 2.0]) == (0.0, 1.0)
    assert all(map(math.isnan, s.auc_interval([np.nan, 0.0], [1.0, 2.0])))


@given(negative=SCORES, positive=SCORES, fpr=st.sampled_from([0.0, 0.001, 0.01, 0.25, 0.5, 1.0]))
def test_detection_rate_is_the_best_of_all_thresholds_within_the_budget(negative, positive, fpr):
    best = 0.0
    for threshold in [-math.inf, *negative, *positive]:
        if np.mean(np.array(negative) > threshold) <= fpr:
            best = max(best, np.mean(np.array(positive) > threshold))
    assert s.tpr_at_fpr(negative, positive, fpr) == pytest.approx(best)


def test_detection_rate_counts_whole_negatives():
    negative = np.arange(300.0)
    assert s.tpr_at_fpr(negative, [296.5, 295.5], 0.01) == 0.5  # three of 300 may lie above
    assert s.tpr_at_fpr(negative, [299.0, 300.0], 0.001) == 0.5  # none may, and a tie is not above
    assert math.isnan(s.tpr_at_fpr([np.nan], [1.0], 0.1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        s.tpr_at_fpr([0.0], [1.0], 1.5)


def test_exact_binomial_interval():
    """Zero of n: the upper end is 1 - (alpha/2)^(1/n)."""
    assert s.binomial_interval(0, 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))


def test_attack_details_say_how_many_forget_rows_look_like_members():
    forget, holdout = np.array([0.0, 0.1, 5.0, 6.0]), np.array([1.0, 2.0, 3.0, 7.0])
    detail = attack_details({"loss": forget}, {"loss": holdout})["loss"]
    assert detail["tpr_at_fpr"] == {"0.01": 0.5, "0.001": 0.5}  # two lie below every holdout score
    assert (detail["n_forget"], detail["n_holdout"]) == (4, 4)
    low, high = detail["interval"]
    assert low < s.roc_auc(forget, holdout) < high
