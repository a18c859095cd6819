"""The Countdown world: numbers and a target, any expression that hits the target is right.

A question has dozens of right answers, so becoming right does not force a policy to give up its entropy: here the signs
of a gradient can part. The level (1 to 3) is how many numbers there are, 3 to 5. Training answers are well-formed
expressions over the given numbers, drawn at random; most of them miss the target. Of the training answers of the second
stage the share `RIGHT` hits it, so a model trained on them is a sampler that is mostly wrong and rarely hopeless.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

from negpo.lab.problem_lab import LabSize, ProblemWorld, build_problem_lab
from negpo.rewards.countdown import Task, grade_countdown

LEVELS = (1, 2, 3)
LARGEST = 9  # of a number: one token each
TARGETS = range(1, 100)
RIGHT = 0.3
_PRECEDENCE = {"+": 1, "-": 1, "*": 2}
_OPERAND = 3
MISSES = ("not an expression", "does not use")  # reasons of the verifier for answers that are not well-formed


@dataclass(frozen=True)
class CountdownProblem:
    """Numbers in ascending order, the target, and one expression that hits it, which is no part of the question."""

    level: int
    numbers: tuple[int, ...]
    target: int
    solution: str = field(compare=False)

    @property
    def question(self) -> str:
        return f"Make {self.target} from {','.join(map(str, self.numbers))}."

    @property
    def answer(self) -> str:
        return Task(self.numbers, self.target).gold

    def row(self, identity: str) -> dict[str, str]:
        """One row in the MATH schema."""
        values = {"problem": self.question, "solution": boxed(self.solution), "answer": self.answer}
        return {**values, "level": f"Level {self.level}", "type": "Countdown", "unique_id": identity}


def boxed(expression: str) -> str:
    """An answer as the model writes it."""
    return f" \\boxed{{{expression}}}"


def draw_expression(numbers: tuple[int, ...], rng: random.Random) -> tuple[str, int]:
    """A random expression over all numbers with as few brackets as it needs, and its value.

    Numbers in random order, two neighbours at a time joined by ``+``, ``-`` or ``*`` until one is left.
    """
    parts = [(str(number), number, _OPERAND) for number in rng.sample(numbers, len(numbers))]
    while len(parts) > 1:
        place = rng.randrange(len(parts) - 1)
        (left, x, left_rank), (right, y, right_rank) = parts[place : place + 2]
        sign = rng.choice("+-*")
        rank = _PRECEDENCE[sign]
        text = left if left_rank >= rank else f"({left})"
        text += sign + (right if right_rank > rank or (right_rank == rank and sign != "-") else f"({right})")
        parts[place : place + 2] = [(text, x + y if sign == "+" else x - y if sign == "-" else x * y, rank)]
    return parts[0][:2]


def make_problem(level: int, rng: random.Random) -> CountdownProblem:
    """Numbers of one digit and the value of a random expression over them."""
    while True:
        numbers = tuple(sorted(rng.randint(1, LARGEST) for _ in range(level + 2)))
        solution, target = draw_expression(numbers, rng)
        if target in TARGETS:
            return CountdownProblem(level, numbers, target, solution)


def right(problem: CountdownProblem, rng: random.Random) -> str:
    """The training answer that hits the target."""
    return boxed(problem.solution)


def mostly_wrong(problem: CountdownProblem, rng: random.Random) -> str:
    """A training answer: right with probability `RIGHT`, else a random expression that misses."""
    if rng.random() < RIGHT:
        return right(problem, rng)
    while True:
        expression, value = draw_expression(problem.numbers, rng)
        if value != problem.target:
            return boxed(expression)


def well_formed(text: str, question: str) -> bool:
    """Whether an answer is an expression over exactly the given numbers, right or wrong."""
    target, numbers = question.removeprefix("Make ").rstrip(".").split(" from ")
    verdict = grade_countdown(text, Task(tuple(map(int, numbers.split(","))), int(target)).gold)
    return verdict.status != "unknown" and verdict.extracted is not None and not verdict.reason.startswith(MISSES)


COUNTDOWN = ProblemWorld(
    name="countdown",
    kind="countdown",
    levels=LEVELS,
    sizes={
        "default": LabSize(worked_rows=32000),
        "tiny": LabSize(hidden=32, heads=1, worked_rows=320, answer_rows=320, train_problems=40, test_problems=12),
    },
    sources=("countdown.py",),
    make_problem=make_problem,
    worked=right,
    sampled=mostly_wrong,
    style="use the given numbers",
    in_style=well_formed,
)
build_countdown_lab = partial(build_problem_lab, COUNTDOWN)
