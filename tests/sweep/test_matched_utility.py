"""Matched utility and the judgement of a sweep, on numbers made by hand."""

import itertools

import numpy as np
import pytest

from negpo.lab.sweep import matched
from negpo.lab.sweep.measure import ROW_METRICS, forgetting
from negpo.report.leaderboard import ranked, to_csv, to_html, to_markdown, to_open_unlearning


def point(step, utility, known, n=4):
    """A model that knows every forget row to the degree ``known``."""
    return {"step": step, "utility": utility, "rows": {name: [known] * n for name in ROW_METRICS}}


TARGET = point(0, 1.0, 0.9)


def test_the_level_is_crossed_on_a_straight_line_between_measurements():
    place = matched.best_at([point(10, 0.8, 0.1)], TARGET, 0.95, [0, 1])
    assert place.step == pytest.approx(2.5)
    assert place.utility == pytest.approx(0.95)
    assert place.score == pytest.approx(1 - (0.9 - 0.25 * 0.8))


def test_a_trajectory_that_recovers_its_utility_counts_where_it_has_it():
    trajectory = [point(10, 0.7, 0.2), point(20, 0.97, 0.05)]
    place = matched.best_at(trajectory, TARGET, 0.95, [0])
    assert (place.step, place.score) == (20, pytest.approx(0.95))


def test_a_trial_that_only_destroys_stays_near_the_target():
    place = matched.best_at([point(10, 0.0, 0.0)], TARGET, 0.95, [0])
    assert place.utility == pytest.approx(0.95)
    assert place.score < 0.2


def test_the_choice_sees_validation_rows_only():
    rows = {name: [0.0, 0.0, 0.9, 0.9] for name in ROW_METRICS}
    better_elsewhere = {"step": 5, "utility": 1.0, "rows": rows}
    assert matched.best_at([better_elsewhere], TARGET, 0.95, [0, 1]).score == pytest.approx(1.0)
    assert matched.best_at([better_elsewhere], TARGET, 0.95, [2, 3]).score == pytest.approx(0.1)


def test_forgetting_is_the_harmonic_mean_of_what_is_not_known():
    rows = {name: [value] for name, value in zip(ROW_METRICS, (0.2, 0.5, 0.1, 0.4, 9.0), strict=True)}
    assert forgetting(rows, [0]) == pytest.approx(4 / (1 / 0.8 + 1 / 0.5 + 1 / 0.9 + 1 / 0.6))


def test_the_bootstrap_is_paired_and_reproducible():
    generator = np.random.default_rng(0)
    rows = [{name: generator.uniform(0, 1, 6).tolist() for name in ROW_METRICS} for _ in range(2)]
    draws = matched.make_draws([3, 3], 200, seed=1)
    again = matched.make_draws([3, 3], 200, seed=1)
    chosen = [[0, 1, 2], [3, 4, 5]]
    assert np.array_equal(matched.boot(rows, chosen, draws), matched.boot(rows, chosen, again))
    observed = np.mean([forgetting(r, c) for r, c in zip(rows, chosen, strict=True)])
    low, high = np.quantile(matched.boot(rows, chosen, draws), [0.005, 0.995])
    assert low < observed < high


def test_holm_never_lowers_a_p_value_and_keeps_their_order():
    raw = [0.01, 0.04, 0.03, 0.5]
    corrected = matched.holm(raw)
    assert corrected == pytest.approx([0.04, 0.09, 0.09, 0.5])
    order = np.argsort(raw)
    assert all(corrected[a] <= corrected[b] for a, b in itertools.pairwise(order))


def board():
    def entry(value):
        place = {
            "trial": 1,
            "settings": {"lr": "<b>"},
            "step": 3.0,
            "utility": 0.95,
            "validation": value,
            "report": value,
        }
        levels = {level: {"value": value, "low": value, "high": value, "mixing": None} for level in ("0.95", "0.9")}
        return {"seeds": {"0": {"checkpoints": dict.fromkeys(levels, place), "mixing": {}}}, "levels": levels}

    return {
        "trials": 2, "steps": 3, "batch": 4, "seeds": [0], "missing_seeds": [1], "levels": [0.95, 0.9],
        "methods": {"ga": entry(0.2), "npo": entry(0.7)}, "references": {"target": {"value": 0.1, "utility": 0.8}},
        "significance": {level: {"ga": {"npo": 0.01}, "npo": {"ga": 0.01}} for level in ("0.95", "0.9")},
    }  # fmt: skip


def test_every_form_of_the_leaderboard_ranks_alike_and_escapes_what_it_shows():
    assert [name for name, _ in ranked(board(), "0.95")] == ["npo", "ga"]
    page = to_html(board())
    assert "<b>" not in page
    assert "not finished: 1" in page
    assert to_csv(board()).splitlines()[1].startswith("ga,0,0.95,checkpoints,1,3.0")
    assert to_markdown(board()).index("npo") < to_markdown(board()).index("ga ")
    assert "| npo | – | 0.95 |" in to_open_unlearning(board())
