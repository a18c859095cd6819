"""Estimates and verdicts of `negpo demo rlvr` on made-up runs whose answer is known."""

import numpy as np
import pytest

from negpo.eval.bootstrap import Estimate, estimate
from negpo.lab.claims import Claim, Part
from negpo.lab.rlvr_claims import claims
from negpo.lab.rlvr_estimates import (
    SMOOTHED,
    Results,
    all_wrong_shares,
    area_values,
    compare,
    entropy_against,
    entropy_at_equal_accuracy,
    fall_at_accuracy_of,
    pass_values,
)

SAMPLES = 16


def make_run(solved, *, logp=-2.0, tokens=8.0, drop=0.1, complete=0.5, name="x"):
    """A run whose problem i had ``solved[i]`` right samples; problems alternate between two levels."""
    problems = [
        {"problem": f"p{i}", "level": f"Level {1 + i % 2}", "n": SAMPLES, "c": c, "logp": logp, "tokens": tokens}
        for i, c in enumerate(solved)
    ]
    shares = {"right": 0.5, "all_wrong": 0.3, "all_right": 0.1, "complete": complete, "distinct": 0.6, "entropy": 0.2}
    rollout = {"samples": 4, **shares, "levels": {"Level 1": shares, "Level 2": shares}}
    probe = [
        {"problem": row["problem"], "drop": drop, "mean": -drop, "complete": 0.1, "partial": -0.3} for row in problems
    ]
    return {
        "title": name,
        "problems": problems,
        "rollouts": [rollout] * 20,
        "probe": {"curve": [], "problems": probe},
        "steps": 80,
        "stopped": "",
        "right_answers_per_problem": 1.5,
    }


def make_results(seeds=2, **runs):
    return Results({seed: {"base": make_run([8] * 40), **runs} for seed in range(seeds)})


def test_an_estimate_is_the_mean_over_seeds_whatever_their_number_of_problems():
    found = estimate([np.zeros((10, 1)), np.ones((1000, 1))])
    assert found.value == pytest.approx(0.5)
    assert found.seeds == (0.0, 1.0)
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_interval_of_one_seed_covers_the_mean_of_the_population_in_about_95_of_100_cases():
    rng = np.random.default_rng(1)
    found = [estimate([rng.random((60, 1))], draws=1000) for _ in range(400)]
    assert 0.90 <= np.mean([one.low <= 0.5 <= one.high for one in found]) <= 0.98


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    tables = [rng.normal(0, 0.1, (200, 1)) for _ in range(3)]
    apart = [table + shift for table, shift in zip(tables, (-0.5, 0.0, 0.5), strict=True)]
    widths = [found.high - found.low for found in (estimate(tables), estimate(apart))]
    assert widths[1] > 5 * widths[0]


def test_a_seed_without_any_value_does_not_count_and_no_value_at_all_decides_nothing():
    empty = np.empty((0, 1))
    assert estimate([np.ones((3, 1)), empty]).seeds == (1.0,)
    assert Part("x", estimate([empty]), 0.0, True).verdict == "open"


def test_a_comparison_is_made_problem_by_problem():
    solved = np.arange(40) % SAMPLES
    results = make_results(a=make_run(solved + 1), b=make_run(solved))
    found = compare(results, "a", "b", lambda run: pass_values(run, [1]))
    assert found.value == pytest.approx(1 / SAMPLES)
    assert found.low == pytest.approx(found.high)  # every problem gained the same, however different they are


def test_the_area_of_a_flat_curve_is_its_height():
    assert area_values(make_run([SAMPLES, 0]), [1, 2, 4]).ravel().tolist() == [1.0, 0.0]


def test_entropies_are_compared_per_token():
    results = make_results(a=make_run([1] * 40, logp=-6.0, tokens=24.0), b=make_run([1] * 40, logp=-1.0, tokens=8.0))
    assert entropy_against(results, "a", "b").value == pytest.approx((6 / 24) / (1 / 8))


def test_all_wrong_shares_are_those_of_groups_of_the_model_before():
    results = Results({0: {"base": make_run([0, SAMPLES, 0, SAMPLES])}})
    assert all_wrong_shares(results) == {"Level 1": 1.0, "Level 2": 0.0}


@pytest.mark.parametrize(
    ("low", "high", "above", "verdict"),
    [(0.1, 0.3, True, "holds"), (-0.3, -0.1, True, "fails"), (-0.1, 0.1, True, "open"), (0.1, 0.3, False, "fails")],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, above, verdict):
    part = Part("x", Estimate((low + high) / 2, low, high, ()), 0.0, above)
    assert part.verdict == verdict


def test_a_claim_is_reproduced_only_if_all_of_it_is():
    def part(value):
        return Part("x", Estimate(value, value - 0.1, value + 0.1, ()), 0.0, True)

    assert Claim("t", (part(1.0), part(2.0))).headline == "Reproduced"
    assert Claim("t", (part(-1.0),)).tone == "bad"
    mixed = Claim("t", (part(1.0), part(0.0), part(-1.0)))
    assert (mixed.tone, mixed.headline) == ("warn", "1 of 3 hold, 1 of 3 undecided, 1 of 3 do not hold")


def test_the_claims_find_in_made_up_runs_what_was_put_into_them():
    results = make_results(
        psr=make_run([0, SAMPLES] * 20, logp=-0.5),
        nsr=make_run([8] * 40, logp=-1.9, drop=0.4),
        grpo=make_run([8] * 40),
        ngrpo=make_run([9] * 40),
        resrl=make_run([8] * 40, drop=0.1),
    )
    found = claims(results)
    assert [claim.headline for claim in found[::2]] == ["Reproduced", "Reproduced"]
    by_measure = {part.text: part.verdict for part in found[1].parts}
    assert by_measure["Level 1, pass@1: NGRPO minus GRPO"] == "holds"


def test_claims_about_methods_that_were_not_run_are_left_out():
    results = make_results(psr=make_run([8] * 40), nsr=make_run([8] * 40))
    assert [claim.title[:3] for claim in claims(results)] == ["NSR"]


def with_training(accuracies, entropies, falls=()):
    """A run whose rollouts had these accuracies and entropies; `falls` of its probe come after every fourth step."""
    run = make_run([8] * 4)
    shared = run["rollouts"][0]
    run["rollouts"] = [
        {**shared, "right": right, "entropy": entropy} for right, entropy in zip(accuracies, entropies, strict=True)
    ]
    run["steps"] = 4 * len(run["rollouts"])
    run["probe"]["curve"] = [{"step": 4 * (i + 1), "mean": -fall, "drop": fall} for i, fall in enumerate(falls)]
    return run


def test_entropies_at_equal_accuracy_do_not_depend_on_who_was_faster():
    accuracy = np.linspace(0.2, 0.8, 40)
    slow = with_training(accuracy, 0.1 * (1 - accuracy))
    fast = with_training(accuracy[::2], 0.2 * (1 - accuracy[::2]))
    results = make_results(slow=slow, fast=fast)
    assert entropy_at_equal_accuracy(results, "fast", "slow") == pytest.approx(2.0, rel=1e-3)
    never = with_training([0.9] * 10, [0.1] * 10)
    assert np.isnan(entropy_at_equal_accuracy(make_results(slow=slow, never=never), "never", "slow"))


def test_a_fall_is_compared_when_both_runs_were_equally_right():
    steady = np.linspace(0.0, 1.0, 20)
    first = with_training(steady, steady, falls=steady)
    second = with_training(steady / 2, steady, falls=steady / 4)
    found = fall_at_accuracy_of(make_results(a=first, b=second), "a", "b")
    mean_at_the_end = float(np.mean(steady[-SMOOTHED:] / 2))
    reached = next(i for i in range(20) if np.mean(steady[max(0, i - SMOOTHED + 1) : i + 1]) >= mean_at_the_end)
    assert found == pytest.approx(steady[reached])
