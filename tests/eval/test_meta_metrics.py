"""Aggregates, faithfulness, robustness, mixing, flips and yes/no numbers against the reference values and by hand."""

import numpy as np
import pytest

from negpo.eval.meta_metrics import (
    faithfulness,
    flips,
    harmonic,
    memorisation_score,
    privacy_score,
    quantisation_robustness,
    relearning_robustness,
    smallest_mixing_ratio,
    yes_no,
)


@pytest.fixture(scope="module")
def meta(load_fixture):
    return {case["name"]: case for case in load_fixture("unlearning2/meta.json")["cases"]}


def test_faithfulness_is_the_auc_and_the_most_accurate_threshold(meta):
    case = meta["faithfulness"]
    found = faithfulness(case["positive"], case["negative"])
    assert found.auc == pytest.approx(case["auc"])
    assert found.accuracy == pytest.approx(case["best_accuracy"])
    assert found.threshold in case["best_thresholds"]


def test_robustness_in_all_its_forms(meta):
    case = meta["robustness"]
    before, after, retain = case["before"], case["after"], (case["retain_before"], case["retain_after"])
    for how, key in (("rise", "Q_penalise_rise"), ("printed", "Q_as_printed"), ("symmetric", "Q_symmetric")):
        assert quantisation_robustness(before, after, how=how) == pytest.approx(case[key], abs=1e-10)
    assert relearning_robustness(before, after, *retain) == pytest.approx(case["R_penalise_fast"], abs=1e-10)
    assert relearning_robustness(before, after, *retain, how="symmetric") == pytest.approx(
        case["R_symmetric"], abs=1e-10
    )


def test_the_aggregates_of_open_unlearning(meta):
    case = meta["aggregate"]
    memory = memorisation_score(case["es"], case["em"], case["para_prob"], case["truth_ratio"])
    assert memory == pytest.approx(case["memorization"])
    privacy = privacy_score(case["mia_auc"], case["retain_auc"])
    assert privacy == pytest.approx(case["privacy"])
    utility = harmonic([x / y for x, y in (case["model_utility"], case["fluency"])])
    assert utility == pytest.approx(case["utility"])
    assert harmonic([memory, privacy, utility]) == pytest.approx(case["overall"])


def test_the_smallest_mixture_that_keeps_the_utility(meta):
    case = meta["matched_utility"]
    level = 1 - case["tolerance"]
    found = smallest_mixing_ratio(case["update_ratio"], case["utility"], case["target_utility"], level=level)
    assert found == case["smallest_ratio"]
    assert smallest_mixing_ratio([0.0, 1.0], [0.1, 0.2], 1.0) is None


def test_flips_split_the_change_of_accuracy_and_are_tested_exactly(meta):
    case = meta["flips"]
    found = flips(case["old_correct"], case["new_correct"])
    assert (found.negative, found.positive) == (case["negative_flip_rate"], case["positive_flip_rate"])
    assert found.accuracy_change == pytest.approx(case["accuracy_change"])
    assert flips([1, 1, 1, 0], [0, 0, 0, 0]).p_value == pytest.approx(2 * 0.5**3)
    assert flips([1, 0], [1, 0]).p_value == 1.0
    with pytest.raises(ValueError, match="before has 2 items and after 3"):
        flips([1, 0], [1, 0, 0])


def test_a_model_that_always_says_no_is_found_out_by_the_gap(meta):
    case = meta["yes_no"]
    found = yes_no(case["p_yes"], case["statement_true"])
    assert (found.accuracy, found.yes_rate) == pytest.approx((case["accuracy"], case["yes_rate"]))
    assert (found.balanced, found.gap) == pytest.approx((case["balanced"], case["p_yes_gap"]))
    denier = yes_no([0.4, 0.1, 0.45, 0.05], [1, 0, 1, 0])
    assert (denier.balanced, denier.yes_rate) == (0.5, 0.0)
    assert denier.gap == pytest.approx(0.35)
    with pytest.raises(ValueError, match="all true or all false"):
        yes_no([0.4, 0.1], [1, 1])


def test_a_pool_of_one_model_is_refused():
    with pytest.raises(ValueError, match="the positive pool has 1 model"):
        faithfulness([0.5], [0.1, 0.2])
    with pytest.raises(ValueError, match="the negative pool has 1 model"):
        faithfulness([0.5, 0.4], [0.1])


def test_nothing_changed_is_full_robustness_and_a_zero_in_a_harmonic_mean_is_zero():
    for how in ("symmetric", "rise", "printed"):
        assert quantisation_robustness([0.0, 0.3], [0.0, 0.3], how=how) == pytest.approx([1, 1])
    assert relearning_robustness([0.5], [0.2], 0.1, 0.3) == pytest.approx([1.0])
    assert harmonic([0.5, 0.0]) == 0.0
    assert np.isclose(harmonic([1.0, 0.5]), 2 / 3)
    with pytest.raises(ValueError, match="how is 'other'"):
        quantisation_robustness([0.1], [0.2], how="other")
