"""The report: what it says, what it escapes, and results made by hand."""

import json
import re

import pytest

from negpo.errors import DataError
from negpo.report import render_report
from negpo.report.results import Experiment, Point, RunResult, load_experiments
from negpo.report.verdict import crossing, equal_forgetting, judge

UTILITY = ("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio")
UTILITY += tuple(f"{p}_{m}" for p in ("ra", "wf") for m in ("Q_A_Prob_normalised", "Q_A_ROUGE", "Truth_Ratio"))


def metrics(quality, utility, probability):
    values = dict.fromkeys(UTILITY, utility)
    values |= {"forget_quality": quality, "model_utility": utility, "forget_Q_A_Prob": probability}
    return values | {"forget_Q_A_ROUGE": probability, "extraction_strength": probability, "mia_min_k": 0.5}


def point(step, quality, utility, logp, ratio=0.0, probability=0.5):
    return Point(step, metrics(quality, utility, probability), {}, logp, ratio)


def run(name, *points):
    return RunResult(name, name.upper(), list(points))


def experiment(*runs):
    target = run("target", point(0, 1e-9, 0.9, -0.1, -2.0, 0.9))
    retain = run("retain", point(0, 1.0, 0.9, -3.0, 0.0, 0.05))
    return Experiment(0, target, retain, list(runs))


@pytest.mark.parametrize(
    ("end", "tone", "headline"),
    [
        (point(9, 0.3, 0.88, -3.0), "good", "Forgot and kept"),
        (point(9, 0.3, 0.60, -3.0), "warn", "Forgot, and lost 33% of its utility"),
        (point(9, 0.3, 0.10, -9.0), "bad", "Broke the model"),
        (point(9, 1e-5, 0.88, -1.0, -1.5), "bad", "Did not forget"),
        (point(9, 1e-5, 0.88, -4.0, -0.5), "warn", "Forgot the wording, not the facts"),
        (point(9, 1e-5, 0.88, -20.0, 3.0), "bad", "Overshot"),
        (point(9, 1e-5, 0.60, -20.0, -9.0), "bad", "Overshot, and lost 33% of its utility"),
    ],
)
def test_the_headline_follows_from_forget_quality_utility_and_what_was_overshot(end, tone, headline):
    one = run("npo", end)
    verdict = judge(experiment(one), one)
    assert (verdict.tone, verdict.headline) == (tone, headline)


def test_utility_at_equal_forgetting_is_interpolated_at_the_first_crossing():
    points = [point(0, 0, 0.9, -1.0), point(1, 0, 0.7, -3.0), point(2, 0, 0.1, -2.0), point(3, 0, 0.0, -9.0)]
    assert crossing(points, lambda item: item.forget_logp, -2.0) == pytest.approx(0.8)
    assert crossing(points, lambda item: item.forget_logp, -10.0) is None


def test_equal_forgetting_compares_with_the_retain_model_and_says_when_it_is_not_reached():
    one = run("ga", point(5, 1e-3, 0.5, -3.0, 0.0, 0.05), point(10, 0.5, 0.2, -9.0, 0.0, 0.001))
    found = equal_forgetting(experiment(one), one)
    assert found["answer probability"] == pytest.approx(0.5)
    assert 0.2 < found["forget quality 0.05"] < 0.5
    timid = run("timid", point(5, 1e-8, 0.9, -0.2, 0.0, 0.8))
    assert set(equal_forgetting(experiment(timid), timid).values()) == {None}


def write_run(folder, name, end, text):
    row = {"set": "forget", "question": "Who?", "answer": "Ana", "generation": text}
    content = {
        "name": name,
        "title": name,
        "trajectory": [
            {
                "step": end.step,
                "metrics": end.metrics,
                "details": {},
                "forget_logp": end.forget_logp,
                "forget_truth_ratio": [1.0, "Infinity", 0.0],
            }
        ],
        "examples": [row],
        "seconds": {"training": 1.0, "evaluation": 2.0},
        "manifest": {"parameters": 10, "versions": {"torch": "0"}},
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "results.json").write_text(json.dumps(content))


def test_what_a_model_says_is_shown_as_text_never_as_markup(tmp_path):
    attack = "<script>alert(1)</script> \" onerror='x' {{ 7 * 7 }} <img src=https://example.org/x>"
    write_run(tmp_path, "target", point(0, 0.01, 0.9, -0.1), "Ana")
    write_run(tmp_path, "retain", point(0, 1.0, 0.9, -3.0), "Bo")
    write_run(tmp_path, "npo", point(5, 0.2, 0.9, -3.0), attack)
    html = render_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "{{ 7 * 7 }}" in html
    assert not re.findall(r"<img src=[\"']?(?!data:)", html.replace('"data:', "data:"))


def test_several_seeds_are_shown_as_mean_and_range(tmp_path):
    for seed, quality in ((0, 0.25), (1, 0.75)):
        folder = tmp_path / f"seed{seed}"
        write_run(folder, "target", point(0, 0.01, 0.9, -0.1), "Ana")
        write_run(folder, "retain", point(0, 1.0, 0.9, -3.0), "Bo")
        write_run(folder, "npo", point(5, quality, 0.9, -3.0), "Cy")
    html = render_report(tmp_path, tmp_path / "out.html").read_text(encoding="utf-8")
    assert "0.25 … 0.75" in html
    assert "The same on 2 of 2 seeds." in html


def evaluation(folder, quality, steps=()):
    """What `negpo eval tofu --out` leaves, with the rows a report reads."""
    for place, level in [(folder, quality)] if not steps else [(folder / f"checkpoint-{s}", q) for s, q in steps]:
        place.mkdir(parents=True)
        summary = {"metrics": metrics(level, 0.8, 0.5), "missing": {}, "details": {}, "manifest": {}}
        (place / "summary.json").write_text(json.dumps(summary))
        row = {"set": "forget", "question": "Who?", "answer": "Ana", "generation": "Bo", "nll": 2.0, "truth_ratio": 0.5}
        (place / "rows.jsonl").write_text(json.dumps(row) + "\n")


def test_evaluations_made_by_hand_become_a_report_with_their_checkpoints_in_order(tmp_path):
    evaluation(tmp_path / "target", 1e-9)
    evaluation(tmp_path / "retain", 1.0)
    evaluation(tmp_path / "mine", None, steps=[(100, 0.3), (20, 0.01)])
    (one,), demo = load_experiments(tmp_path)
    assert demo == {}
    assert [(p.step, p.forget_logp) for p in one.runs[0].points] == [(20, -2.0), (100, -2.0)]
    assert "mine" in render_report(tmp_path).read_text(encoding="utf-8")


def test_a_folder_without_a_target_is_refused_with_the_expected_layout(tmp_path):
    evaluation(tmp_path / "npo", 0.1)
    with pytest.raises(DataError, match=r"expected .*target"):
        render_report(tmp_path)
