"""The numbers behind verdicts: resampling, KS p-values, the rules, and conditions for pipelines."""

import math

import numpy as np
import pytest
from scipy import stats

from negpo.errors import ConfigError
from negpo.eval.audit.lines import LineKind, judge
from negpo.eval.audit.numbers import ks_p_value, roc_points
from negpo.eval.audit.require import check_requirements, parse_requirements, refuse_unavailable
from negpo.eval.audit.resampling import (
    Resampler,
    auc_of,
    harmonic_mean,
    ks_distance,
    mean_of,
    mean_of_known,
)
from negpo.eval.audit.run import metric_names
from negpo.eval.audit.settings import AuditSettings
from negpo.eval.statistics import auc_interval, ks_test, roc_auc

SETTINGS = AuditSettings()
RNG = np.random.default_rng(3)


def resampler(n=60, resamples=2000):
    return Resampler.make({"forget": n, "holdout": n, "retain": n}, resamples, 0, 0.95)


def verdict(rule, model, retain, target, settings=SETTINGS, n=60):
    """The line of three measurements of the same rows (n,)."""
    draws = resampler(n)
    sides = [{"x": draws.estimate(mean_of("forget", values))} for values in (model, retain, target)]
    return judge(LineKind("forgotten", "x", "x", rule), *sides, settings, draws)


def test_with_every_row_once_a_statistic_is_the_ordinary_number():
    low, high = RNG.normal(size=60), RNG.normal(0.4, size=60)
    low[3] = high[5] = 0.25  # a tie
    found = resampler().estimate(auc_of("forget", "holdout", low, high))
    assert found.value == pytest.approx(roc_auc(low, high), abs=1e-15)
    assert resampler().estimate(ks_distance("forget", low, high)).value == ks_test(low, high).statistic
    parts = [mean_of("forget", np.abs(low)), mean_of("retain", np.abs(high))]
    expected = stats.hmean([np.abs(low).mean(), np.abs(high).mean()])
    assert resampler().estimate(harmonic_mean(parts)).value == pytest.approx(expected, rel=1e-14)


def test_intervals_agree_with_the_normal_theory_and_with_delong():
    values, other = RNG.normal(size=60), RNG.normal(0.8, size=60)
    found = resampler(resamples=8000).estimate(mean_of("forget", values))
    reach = 1.96 * values.std() / math.sqrt(60)
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.03)
    auc = resampler(resamples=8000).estimate(auc_of("forget", "holdout", values, other))
    assert (auc.low, auc.high) == pytest.approx(auc_interval(values, other), abs=0.03)


def test_rows_without_a_value_are_left_out_of_every_resample():
    values = np.array([1.0, math.nan, 3.0] * 20)
    found = resampler().estimate(mean_of_known("forget", values))
    assert found.value == 2.0
    assert 1 < found.low < 2 < found.high < 3


def test_a_mean_over_rows_with_nan_is_nan_not_a_smaller_mean():
    found = resampler().estimate(mean_of("forget", [math.nan] + [1.0] * 59))
    assert math.isnan(found.value)


@pytest.mark.parametrize("n", [5, 40, 200, 400])
def test_the_ks_p_value_of_a_distance_is_scipys_exact_one(n):
    left, right = RNG.normal(size=n), RNG.normal(0.5, size=n)
    exact = stats.ks_2samp(left, right, method="exact")
    assert ks_p_value(exact.statistic, n) == pytest.approx(exact.pvalue, rel=1e-9)
    assert ks_p_value(1.0, n) == pytest.approx(stats.ks_2samp(np.zeros(n), np.ones(n)).pvalue, rel=1e-9)
    assert ks_p_value(0.0, n) == 1.0


def test_a_roc_curve_encloses_the_auc_it_belongs_to():
    forget, holdout = RNG.normal(size=30), RNG.normal(1, size=25)
    x, y = np.array(roc_points(forget, holdout)).T
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(roc_auc(forget, holdout), abs=1e-12)


def test_a_roc_curve_ranks_infinities_and_tied_scores_and_shows_nothing_for_nan():
    """Every bend is one of the points along all thresholds, counted one by one."""
    forget, holdout = np.array([-np.inf, 0.0, 0.0, 2.0]), np.array([0.0, 1.0, np.inf])
    along = [(0.0, 0.0)] + [((holdout <= t).mean(), (forget <= t).mean()) for t in (-np.inf, 0, 1, 2, np.inf)]
    assert set(roc_points(forget, holdout)) <= {(float(x), float(y)) for x, y in along}
    assert np.trapezoid(*np.array(roc_points(forget, holdout)).T[::-1]) == pytest.approx(roc_auc(forget, holdout))
    assert np.isnan(roc_points(np.array([np.nan, 1.0]), holdout)).all()


def test_the_retain_model_passes_every_rule_against_itself_and_the_target_fails():
    retain, target = RNG.uniform(0.0, 0.3, 60), RNG.uniform(0.8, 1.0, 60)
    for rule in ("leak", "equal"):
        assert verdict(rule, retain, retain, target).outcome == "pass"
        assert verdict(rule, target, retain, target).outcome == "fail"


def test_a_leak_passes_just_below_the_margin_and_fails_at_it():
    retain, target = np.full(60, 0.2), np.full(60, 0.7)
    assert verdict("leak", retain + 0.099, retain, target).outcome == "pass"
    assert verdict("leak", retain + 0.101, retain, target).outcome == "fail"
    assert verdict("leak", retain + 0.101, retain, target).share == pytest.approx(0.202)
    assert verdict("leak", retain, retain, target).limit == pytest.approx(0.3)


def test_the_burden_of_proof_grows_as_rows_become_few():
    rng = np.random.default_rng(1)

    def line(n):
        retain, target = rng.uniform(0, 0.9, n), rng.uniform(0.8, 1.0, n)
        return verdict("leak", rng.permutation(retain), retain, target, n=n)

    assert line(6).outcome == "undecided"
    assert line(600).outcome == "pass"


def test_below_the_retain_model_a_leak_passes_but_equality_fails_as_over_unlearned():
    retain, target = RNG.uniform(0.4, 0.6, 60), RNG.uniform(0.9, 1.0, 60)
    assert verdict("leak", retain - 0.35, retain, target).outcome == "pass"
    line = verdict("equal", retain - 0.35, retain, target)
    assert line.outcome == "fail"
    assert line.note.startswith("over-unlearned")


def test_a_line_on_which_the_target_equals_the_retain_model_tells_nothing():
    values = RNG.uniform(0, 1, 60)
    for rule in ("leak", "equal"):
        line = verdict(rule, values + 0.5, values, RNG.permutation(values))
        assert line.outcome == "no power"
        assert "is not shown to know more" in line.note


def test_keeping_is_judged_against_a_share_of_the_retain_model():
    retain = RNG.uniform(0.7, 0.9, 60)
    assert verdict("keep", 0.92 * retain, retain, retain).outcome == "pass"
    line = verdict("keep", 0.88 * retain, retain, retain)
    assert line.outcome == "fail"
    assert line.note == "lost"
    assert verdict("keep", 0.88 * retain, retain, retain, AuditSettings(utility_margin=0.2)).outcome == "pass"


def test_a_value_that_is_not_a_number_fails_its_line():
    retain, target = np.full(60, 0.2), np.full(60, 0.7)
    line = verdict("leak", np.full(60, math.nan), retain, target)
    assert line.outcome == "fail"
    assert line.note == "not a number"


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("forget_quality>0.05", 0.05),
        (" utility >= 0.9 * target ", 0.9 * 0.8),
        ("model_utility>=retain", 0.6),
        ("mia_min_k<=retain+0.1", 0.6),
        ("mia_min_k<retain - 1e-1", 0.4),
        ("extraction_strength<2*retain+.5", 0.7),
    ],
)
def test_a_condition_reads_as_written(text, bound):
    target = {"model_utility": 0.8, "mia_min_k": 1.0, "extraction_strength": 0.9, "forget_quality": 0.0}
    retain = {"model_utility": 0.6, "mia_min_k": 0.5, "extraction_strength": 0.1, "forget_quality": 1.0}
    [requirement] = parse_requirements([text], metric_names(SETTINGS))
    assert requirement.bound(target, retain) == pytest.approx(bound)
    [outcome] = check_requirements([requirement], "m", dict.fromkeys(target, bound), target, retain)
    assert outcome.met is ("=" in text)


def test_nan_meets_no_condition():
    requirements = parse_requirements(["forget_quality>0", "forget_quality<=9"], metric_names(SETTINGS))
    outcomes = check_requirements(requirements, "m", {"forget_quality": math.nan}, {}, {})
    assert [outcome.met for outcome in outcomes] == [False, False]


@pytest.mark.parametrize(
    "text", ["utility=0.9", "utility>", ">0.5", "utility>1/2", "utility>=0.9*other", "utility>0.5 or 1"]
)
def test_what_is_no_condition_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"is not a condition.*utility>=0\.9\*target"):
        parse_requirements([text], metric_names(SETTINGS))


def test_an_unknown_metric_is_refused_with_the_list_of_names():
    with pytest.raises(ConfigError, match=r"no metric 'forget_qualty'.*forget_quality, .*utility"):
        parse_requirements(["forget_qualty>0.05"], metric_names(SETTINGS))
    with pytest.raises(ConfigError, match="no metric 'relearn_forget' in this suite"):
        parse_requirements(["relearn_forget<0.5"], metric_names(SETTINGS))
    assert parse_requirements(["relearn_forget<0.5"], metric_names(AuditSettings(suite="full")))


def test_a_condition_on_a_number_that_the_data_cannot_give_is_refused_with_the_reason():
    requirements = parse_requirements(["mia_loss<0.6"], metric_names(SETTINGS))
    with pytest.raises(ConfigError, match="mia_loss will not be there: no holdout"):
        refuse_unavailable(requirements, {"mia_loss": "no holdout"})
