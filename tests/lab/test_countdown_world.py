"""The Countdown world: its questions and answers, and the whole demo on a tiny lab with a verifier that errs."""

import json
import random

import pytest

from negpo.errors import ConfigError
from negpo.lab.countdown import COUNTDOWN, RIGHT, draw_expression, make_problem, mostly_wrong, right, well_formed
from negpo.lab.problem_lab import make_problems
from negpo.lab.rlvr_demo import RlvrSettings, run_rlvr_demo
from negpo.lab.rlvr_runs import RUNS, find_run, train_arguments
from negpo.rewards import grade
from negpo.rewards.countdown import to_postfix, tokens, value_of


def drawn(count=600):
    rng = random.Random(0)
    return rng, [make_problem(level, rng) for level in (1, 2, 3) for _ in range(count // 3)]


def test_a_drawn_expression_has_the_value_that_is_said_and_uses_every_number():
    rng = random.Random(0)
    for _ in range(500):
        text, value = draw_expression((2, 3, 3, 7), rng)
        assert value_of(to_postfix(tokens(text))) == value
        assert sorted(filter(str.isdigit, text)) == ["2", "3", "3", "7"]


def test_every_problem_can_be_solved_and_training_answers_are_right_as_often_as_said():
    rng, problems = drawn()
    assert all(grade(right(one, rng), one.answer).status == "correct" for one in problems)
    share = sum(grade(mostly_wrong(one, rng), one.answer).status == "correct" for one in problems) / len(problems)
    assert share == pytest.approx(RIGHT, abs=0.06)
    assert all(well_formed(mostly_wrong(one, rng), one.question) for one in problems)


def test_an_answer_with_other_numbers_is_not_well_formed():
    assert well_formed(" \\boxed{3+5+7}", "Make 99 from 3,5,7.")
    assert not well_formed(" \\boxed{3+5+8}", "Make 16 from 3,5,7.")
    assert not well_formed(" \\boxed{3+5+}", "Make 8 from 3,5.")
    assert not well_formed("", "Make 8 from 3,5.")


def test_test_and_train_share_no_question():
    problems = make_problems(COUNTDOWN, 300, 0)
    assert len({(one.numbers, one.target) for one in problems}) == 300
    assert [one.level for one in problems[:4]] == [1, 2, 3, 1]


def test_runs_with_errors_carry_their_rates_to_the_command_line(tmp_path):
    settings = RlvrSettings(tmp_path, world="countdown", errors=("fn20",))
    assert settings.methods == tuple(RUNS["countdown"])
    assert len(settings.names) == 2 * len(settings.methods)
    run = find_run("countdown", "nsr-fn20")
    lab = COUNTDOWN and type("Lab", (), {"model": tmp_path, "data": tmp_path})
    flags = train_arguments(run, settings.plan(0), lab)
    assert flags[flags.index("--false_negatives") + 1] == "0.2"
    assert "--false_positives" not in flags
    assert "--world countdown --errors fn20" in settings.command
    with pytest.raises(ConfigError, match="fp50"):
        RlvrSettings(errors=("fp50",))


def test_the_demo_runs_on_countdown_with_and_without_errors(tmp_path):
    sizes = {"size": "tiny", "steps": 4, "problems": 6, "samples": 8}
    settings = RlvrSettings(tmp_path, world="countdown", methods=("psr", "nsr"), errors=("fp20",), **sizes)
    run_rlvr_demo(settings)
    summary = json.loads((tmp_path / "rlvr.json").read_text(encoding="utf-8"))
    assert set(summary["runs"]) == {"base", "psr", "nsr", "psr-fp20", "nsr-fp20"}
    assert [claim["title"][:4] for claim in summary["claims"]] == ["NSR ", "20 %"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A verifier that errs" in page
