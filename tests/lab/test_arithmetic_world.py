"""The arithmetic world: questions, answers that stop too soon at known rates, rows in the MATH schema."""

import random
import re
from itertools import pairwise

import pytest

from negpo.lab.arithmetic import (
    LARGEST,
    LEVELS,
    SHAPES,
    SMALLEST,
    WORKED_SHARE,
    ArithmeticProblem,
    make_answer,
    make_problem,
    worked,
)
from negpo.lab.arithmetic_build import make_corpus, make_problems
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
def test_answers_stop_after_every_operation_at_the_stated_rates(level):
    shape = SHAPES[level]
    lengths = [len(LINE.findall(answer)) for _, answer in answers_of(level, random.Random(10 + level))]
    complete = WORKED_SHARE * (1 - shape.stop) ** (shape.operations - 1)
    first = 1 - WORKED_SHARE + WORKED_SHARE * shape.stop
    if level == 1:
        assert set(lengths) == {1}
    else:
        assert near(lengths.count(1) / DRAWS, first, DRAWS)
        assert near(lengths.count(shape.operations) / DRAWS, complete, DRAWS)


@pytest.mark.parametrize("level", LEVELS)
def test_a_hasty_answer_is_right_only_where_the_other_operations_add_nothing(level):
    hasty = [pair for pair in answers_of(level, random.Random(20 + level)) if len(LINE.findall(pair[1])) == 1]
    right = sum(is_right(*pair) for pair in hasty) / len(hasty)
    assert right == 1 if level == 1 else near(right, SHAPES[level].idle, len(hasty))


def test_every_line_calculates_right_and_goes_on_from_the_one_before():
    for problem, answer in answers_of(5, random.Random(0)):
        first, *later = LINE.findall(answer)
        assert first[0] == str(problem.operands[0])
        assert all(int(total) + int(change) == int(result) for total, change, result in [first, *later])
        assert all(line[0] == before[2] for before, line in pairwise([first, *later]))
        assert answer.endswith(f"\\boxed{{{[first, *later][-1][2]}}}")


def test_the_corpus_keeps_away_from_excluded_problems():
    excluded = set(make_problems(500, seed=0))
    questions = {prompt for prompt, _ in make_corpus(2000, 0, lambda problem, _: worked(problem), excluded)}
    assert not any(f"Question: {problem.question}\nAnswer:" in questions for problem in excluded)
