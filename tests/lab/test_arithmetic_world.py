"""The arithmetic world: questions, answers of known imperfection, rows in the MATH schema."""

import random
import re
from itertools import pairwise

import pytest

from negpo.lab.arithmetic import (
    LARGEST,
    LEVELS,
    SHAPES,
    SMALLEST,
    STEPS_SHARE,
    ArithmeticProblem,
    make_answer,
    make_problem,
    make_problems,
    worked,
)
from negpo.lab.arithmetic_build import make_corpus
from negpo.rewards import grade

DRAWS = 4000
LINE = re.compile(r"(\d+)([+-]\d+)=(\d+)")  # one operation of a worked answer


def answers_of(level: int, rng: random.Random) -> list[tuple[ArithmeticProblem, str]]:
    problems = [make_problem(level, rng) for _ in range(DRAWS)]
    return [(problem, make_answer(problem, rng)) for problem in problems]


def is_right(problem: ArithmeticProblem, answer: str) -> bool:
    return answer.endswith(f"\\boxed{{{problem.answer}}}")


def near(share: float, expected: float, count: int) -> bool:
    """Within four standard deviations of a binomial share."""
    return abs(share - expected) <= 4 * (max(expected * (1 - expected), 1e-4) / count) ** 0.5


def test_problems_are_a_function_of_the_seed_and_all_different():
    problems = make_problems(300, seed=3)
    assert problems == make_problems(300, seed=3)
    assert problems != make_problems(300, seed=4)
    assert len(set(problems)) == 300
    assert [problem.level for problem in problems[:10]] == [*LEVELS, *LEVELS]


def test_more_problems_than_a_level_holds_are_refused():
    with pytest.raises(ValueError, match="level 1 does not hold enough"):
        make_problems(900, seed=0, levels=(1,))


@pytest.mark.parametrize("level", LEVELS)
def test_the_answer_is_what_the_question_asks_and_running_values_keep_two_digits(level):
    rng = random.Random(level)
    for _ in range(200):
        problem = make_problem(level, rng)
        assert sum(map(int, re.findall(r"[+-]?\d+", problem.question))) == int(problem.answer)
        assert all(SMALLEST <= total <= LARGEST for total in problem.totals)
        assert len(problem.totals) == SHAPES[level].operations


def test_rows_follow_the_math_schema_and_their_solution_earns_a_correct_verdict():
    for index, problem in enumerate(make_problems(25, seed=0)):
        row = problem.row(f"test/{index}")
        assert set(row) == {"problem", "solution", "answer", "level", "type", "unique_id"}
        assert row["level"] == f"Level {problem.level}"
        assert grade(row["solution"], row["answer"], kind="integer").status == "correct"


@pytest.mark.parametrize("level", LEVELS)
def test_styles_and_slips_come_at_the_stated_rates(level):
    answers = answers_of(level, random.Random(10 + level))
    steps = [pair for pair in answers if "=" in pair[1]]
    direct = [pair for pair in answers if "=" not in pair[1]]
    assert near(len(steps) / DRAWS, STEPS_SHARE, DRAWS)
    wrong = sum(not is_right(*pair) for pair in direct) / len(direct)
    assert near(wrong, SHAPES[level].direct_slip, len(direct))
    lines = [line for _, answer in steps for line in re.findall(r"(\d+)([+x-])(\d+)=(\d+)", answer)]
    slips = sum(
        {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[op] != int(c) for a, op, b, c in lines
    )
    assert near(slips / len(lines), SHAPES[level].step_slip, len(lines))


def test_a_slip_is_carried_on_to_the_box():
    for problem, answer in answers_of(5, random.Random(0)):
        if "=" in answer:
            first, *later = LINE.findall(answer)
            assert first[0] == str(problem.operands[0])
            assert all(line[0] == before[2] for before, line in pairwise([first, *later]))
            assert answer.endswith(f"\\boxed{{{[first, *later][-1][2]}}}")


def test_the_corpus_keeps_away_from_excluded_problems():
    excluded = set(make_problems(500, seed=0))
    questions = {prompt for prompt, _ in make_corpus(2000, 0, lambda problem, _: worked(problem), excluded)}
    assert not any(f"Question: {problem.question}\nAnswer:" in questions for problem in excluded)
