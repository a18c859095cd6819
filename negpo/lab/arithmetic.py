"""The arithmetic world: problems in the MATH schema, and worked answers of known imperfection.

A problem asks for the value of a chain of operations; its level (1 to 5) is how long the chain is and how large its
numbers are. Training answers come in two *styles* and carry *slips*, both drawn with known probabilities, so the model
trained on them is a sampler whose accuracy falls with the level and whose wrong answers look like wrong answers:

* ``direct`` boxes a result at once. It is the usual style at every level, and a guess from level 3 on.
* ``steps`` works the chain out operation by operation. It is rare, and right unless one of its steps slips.

Nothing in the question tells which style is needed. Rewarding what was right therefore strengthens the direct style
everywhere, because easy questions are plentiful, while punishing what was wrong weakens it where it fails; that is the
difference between positive and negative reinforcement this world is made to show.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LEVELS = (1, 2, 3, 4, 5)
PROMPT = "Question: {question}\nAnswer:"


@dataclass(frozen=True)
class LevelShape:
    """How questions of one level look and how often training answers to them go wrong.

    operands: inclusive range of the numbers; operations: length of the chain; times: whether the first operation
    multiplies (by 2 to 9); direct_slip, step_slip: probability that a direct result, or one step, is off.
    """

    operations: int
    low: int
    high: int
    times: bool
    direct_slip: float
    step_slip: float


SHAPES: dict[int, LevelShape] = {
    1: LevelShape(1, 1, 9, False, 0.05, 0.03),
    2: LevelShape(2, 1, 20, False, 0.25, 0.05),
    3: LevelShape(3, 2, 40, False, 0.65, 0.08),
    4: LevelShape(3, 5, 60, True, 0.92, 0.12),
    5: LevelShape(4, 11, 99, True, 1.00, 0.30),
}
STEPS_SHARE = 0.2


@dataclass(frozen=True)
class ArithmeticProblem:
    """Operands and operators of one chain, evaluated from left to right."""

    level: int
    operands: tuple[int, ...]
    operators: tuple[str, ...]

    @property
    def question(self) -> str:
        rest = "".join(f" {op} {value}" for op, value in zip(self.operators, self.operands[1:], strict=True))
        return f"Start with {self.operands[0]}, then{rest}."

    @property
    def totals(self) -> list[int]:
        """Running value after every operation; the last one is the answer."""
        totals = [self.operands[0]]
        for op, value in zip(self.operators, self.operands[1:], strict=True):
            totals.append(_apply(totals[-1], op, value))
        return totals[1:]

    @property
    def answer(self) -> str:
        return str(self.totals[-1])

    @property
    def subject(self) -> str:
        return "Products" if "x" in self.operators else "Sums"

    def row(self, identity: str) -> dict[str, str]:
        """One row in the MATH schema."""
        solution = _steps(self, random.Random(0), slip=0.0)
        values = {"problem": self.question, "solution": solution, "answer": self.answer}
        return {**values, "level": f"Level {self.level}", "type": self.subject, "unique_id": identity}


def _apply(total: int, op: str, value: int) -> int:
    return {"+": total + value, "-": total - value, "x": total * value}[op]


def make_problem(level: int, rng: random.Random) -> ArithmeticProblem:
    """A problem whose running value never falls below zero."""
    shape = SHAPES[level]
    operands, operators = [rng.randint(shape.low, shape.high)], []
    total = operands[0]
    for position in range(shape.operations):
        if shape.times and position == 0:
            op, value = "x", rng.randint(2, 9)
        else:
            value = rng.randint(shape.low, shape.high)
            op = rng.choice("+-") if value <= total else "+"
        operators.append(op)
        operands.append(value)
        total = _apply(total, op, value)
    return ArithmeticProblem(level, tuple(operands), tuple(operators))


def make_problems(count: int, seed: int, *, levels: tuple[int, ...] = LEVELS) -> list[ArithmeticProblem]:
    """`count` different problems, levels in turn; the same for the same seed."""
    rng = random.Random(f"arithmetic-{seed}")
    problems: dict[ArithmeticProblem, None] = {}
    while len(problems) < count:
        level = levels[len(problems) % len(levels)]
        for _ in range(200):  # level 1 has few different questions
            problem = make_problem(level, rng)
            if problem not in problems:
                break
        else:
            raise ValueError(f"level {level} does not hold enough different questions for {count} problems")
        problems[problem] = None
    return list(problems)


def make_answer(problem: ArithmeticProblem, rng: random.Random) -> str:
    """A training answer: a style and slips drawn with the level's probabilities."""
    shape = SHAPES[problem.level]
    if rng.random() < STEPS_SHARE:
        return _steps(problem, rng, slip=shape.step_slip)
    value = problem.totals[-1]
    return f" \\boxed{{{_off(value, rng) if rng.random() < shape.direct_slip else value}}}"


def _steps(problem: ArithmeticProblem, rng: random.Random, *, slip: float) -> str:
    """` 3+4=7, 7x2=14, \\boxed{14}`; a slip changes one result, and the chain goes on from the wrong value."""
    total, lines = problem.operands[0], []
    for op, value in zip(problem.operators, problem.operands[1:], strict=True):
        result = _apply(total, op, value)
        if rng.random() < slip:
            result = _off(result, rng)
        lines.append(f" {total}{op}{value}={result},")
        total = result
    return "".join(lines) + f" \\boxed{{{total}}}"


def _off(value: int, rng: random.Random) -> int:
    """A wrong value of the same size: off by one, two or ten."""
    return value + (rng.choice((-10, -2, -1, 1, 2, 10)) if value >= 10 else rng.choice((1, 2, 3)))
