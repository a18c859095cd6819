"""The arithmetic lab: chains of sums and differences, and a model that solves about half of them by sampling."""

from __future__ import annotations

import random
from collections.abc import Container
from functools import partial

from negpo.lab import problem_lab
from negpo.lab.arithmetic import LEVELS, ArithmeticProblem, make_answer, make_problem, worked
from negpo.lab.problem_lab import Answer, LabSize, ProblemLab, ProblemWorld, build_problem_lab

SIZES = {
    "default": LabSize(),
    "tiny": LabSize(hidden=32, heads=1, worked_rows=160, answer_rows=640, train_problems=40, test_problems=20),
}
SOURCES = ("arithmetic.py", "arithmetic_build.py")
ArithmeticLabPaths = ProblemLab


def operations(question: str) -> int:
    """How many operations a question asks for."""
    return sum(question.count(sign) for sign in "+-")


def carries_out_everything(text: str, question: str) -> bool:
    """Whether an answer writes out every operation; others are right where what they left out adds nothing."""
    return text.count("=") >= operations(question)


def _worked(problem: ArithmeticProblem, rng: random.Random) -> str:
    return worked(problem)


ARITHMETIC = ProblemWorld(
    name="arithmetic",
    kind="integer",
    levels=LEVELS,
    sizes=SIZES,
    sources=SOURCES,
    make_problem=make_problem,
    worked=_worked,
    sampled=make_answer,
    style="carry out every operation",
    in_style=carries_out_everything,
)
build_arithmetic_lab = partial(build_problem_lab, ARITHMETIC)
train_model = partial(problem_lab.train_model, ARITHMETIC)
write_problems = partial(problem_lab.write_problems, ARITHMETIC)
encode = problem_lab.encode


def make_problems(count: int, seed: int, *, levels: tuple[int, ...] = LEVELS) -> list[ArithmeticProblem]:
    """See `negpo.lab.problem_lab.make_problems`."""
    return problem_lab.make_problems(ARITHMETIC, count, seed, levels)


def make_corpus(
    count: int, seed: int, answer: Answer, excluded: Container[ArithmeticProblem] = ()
) -> list[tuple[str, str]]:
    """See `negpo.lab.problem_lab.make_corpus`."""
    return problem_lab.make_corpus(ARITHMETIC, count, seed, answer, excluded)
