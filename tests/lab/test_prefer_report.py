"""Intervals and claims of `demo prefer` on invented results whose truth is known."""

import numpy as np
import pytest

from negpo.lab.prefer_claims import claims
from negpo.lab.prefer_results import Method, Table, drift_gap, estimate, gap, level

QUESTIONS = [{"prompt": f"q{i}", "gold": "1", "group": "impolite" if i % 2 else "polite"} for i in range(200)]
SAMPLES = 8


def table(rate, spread=0.0, seeds=3, seed=0):
    rng = np.random.default_rng(seed)
    rates = np.clip(rate + spread * rng.standard_normal((seeds, 200)), 0, 1)
    return Table(rng.binomial(SAMPLES, rates) / SAMPLES, SAMPLES)


def test_the_interval_of_a_rate_has_the_width_of_its_binomial_error():
    rates = Table(np.full((1, 400), 0.5), SAMPLES)
    found = level(rates)
    assert found.value == 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / (400 * SAMPLES)), rel=0.1)


def test_values_without_sampling_vary_with_the_questions_only():
    values = np.random.default_rng(0).standard_normal((1, 500))
    found = level(Table(values))
    assert found.high - found.low == pytest.approx(2 * 1.96 / np.sqrt(500), rel=0.15)
    assert level(Table(np.full((3, 5), 2.0))).low == 2.0


def test_differences_between_seeds_widen_the_interval():
    same, apart = np.full((3, 100), 0.5), np.repeat([[0.2], [0.5], [0.8]], 100, axis=1)
    assert level(Table(apart, SAMPLES)).high - level(Table(apart, SAMPLES)).low > 0.4
    assert level(Table(same, SAMPLES)).high - level(Table(same, SAMPLES)).low < 0.1


def test_a_difference_is_paired_by_question():
    values = np.random.default_rng(0).standard_normal((2, 100))
    found = gap(Table(values + 0.25), Table(values))
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))


def test_drift_is_a_distance_in_either_direction():
    start, up, down = (Table(np.full((2, 50), value)) for value in (0.5, 0.6, 0.2))
    assert drift_gap(down, up, start).value == pytest.approx(0.2)
    assert drift_gap(up, up, start).value == 0.0
    assert estimate(lambda means: means[:, 0] * 2, up).value == pytest.approx(1.2)


def method(name, rates, *, harmful=(0.6, 0.0), kl=(0.0, 0.1), logp=(-0.1, -0.2)):
    """Two seeds; `rates`: accuracy at the points of the run, the others at its first and later ones."""
    part = "disprefer" if name in ("d2o", "dpo_noisy", "npo", "ga") else "distill"
    rng = np.random.default_rng(1)
    points = []
    for step, rate in enumerate(rates):
        later = min(step, 1)
        points.append(
            {
                "step": step,
                "samples": SAMPLES,
                "right": rng.binomial(SAMPLES, rate, 200).tolist(),
                "harmful": rng.binomial(SAMPLES, harmful[later], 200).tolist(),
                "kl": {"polite": [kl[later]] * 100, "impolite": [kl[later]] * 100},
                "tokens": 20.0,
                "truncated": 0.0,
                "unanswered": 0.0,
                "examples": ["<b>4</b>"] * 8,
            }
        )
    log = [{"step": i, "chosen/logp": value, "rejected/logp": 2 * value} for i, value in enumerate(logp)]
    references = {key: {"right": [4] * 10, "samples": SAMPLES} for key in ("teacher", "start", "student")}
    lab = {"references": references, "sets": {"pairs (stage 2)": 7}}
    run = {"questions": QUESTIONS, "points": points, "training_log": log, "lab": lab, "config": {"alpha": 0.8}}
    run |= {"name": name, "title": name, "part": part, "command": ["negpo", "train", name]}
    return Method(name, name, part, [run | {"seed": 0}, run | {"seed": 1}])


def tones(**methods):
    return {claim.title: claim.tone for claim in claims(methods)}


def test_claims_hold_where_the_numbers_say_so():
    found = tones(
        sft=method("sft", [0.5, 0.6]),
        redi=method("redi", [0.5, 0.8]),
        redi_symmetric=method("redi_symmetric", [0.5, 0.7, 0.4]),
        d2o=method("d2o", [0.9, 0.88]),
        dpo_noisy=method("dpo_noisy", [0.9, 0.6]),
        npo=method("npo", [0.9, 0.5]),
        ga=method("ga", [0.9, 0.1]),
    )
    assert len(found) == 5
    assert set(found.values()) == {"good"}


def test_claims_fail_where_the_numbers_say_so():
    found = tones(
        sft=method("sft", [0.5, 0.8]),
        redi=method("redi", [0.5, 0.6]),
        redi_symmetric=method("redi_symmetric", [0.5, 0.7]),
        d2o=method("d2o", [0.9, 0.5], harmful=(0.6, 0.3)),
        dpo_noisy=method("dpo_noisy", [0.9, 0.6]),
        npo=method("npo", [0.9, 0.89]),
        ga=method("ga", [0.9, 0.89]),
    )
    assert set(found.values()) == {"bad"}


def test_a_small_difference_is_not_decided_and_equal_harm_is_no_worse():
    same = {"sft": method("sft", [0.5, 0.6]), "redi": method("redi", [0.5, 0.6])}
    assert tones(**same) == {"REDI with alpha 0.8 beats SFT on right traces": "warn"}
    equal = tones(d2o=method("d2o", [0.9, 0.9]), dpo_noisy=method("dpo_noisy", [0.9, 0.9]))
    assert equal == {"D2O lowers the harm rate at least as far as DPO": "good"}


def test_alpha_1_that_does_not_fall_leaves_the_claim_about_it_open():
    found = tones(redi=method("redi", [0.5, 0.8]), redi_symmetric=method("redi_symmetric", [0.5, 0.6, 0.7]))
    assert list(found.values()) == ["warn"]


def test_the_report_escapes_what_models_say(tmp_path, monkeypatch):
    from negpo.lab import prefer_report as prefer

    found = {name: method(name, [0.5, 0.6]) for name in ("sft", "redi", "d2o", "ga")}
    demo = {"seeds": [0, 1], "command": "negpo demo prefer", "seconds": {"labs": 1.0}}
    monkeypatch.setattr(prefer, "load_methods", lambda folder: (found, demo))
    html = prefer.render_prefer(tmp_path, tmp_path / "report.html").read_text()
    assert "&lt;b&gt;4&lt;/b&gt;" in html
    assert "<b>4</b>" not in html
