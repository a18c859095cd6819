"""The arithmetic world: problems in the MATH schema, and worked answers of known imperfection.

A problem asks for the value of a chain of sums and differences; its level (1 to 5) is how long the chain is. Training
answers come in two *styles* and carry *slips*, both drawn with known probabilities, so the model trained on them is a
sampler whose accuracy falls with the level and whose wrong answers look like wrong answers:

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

    operations: length of the chain; direct_slip: probability that a direct result is a blind guess; step_slip:
    probability that the result of one step is off by one, two or ten.
    """

    operations: int
    direct_slip: float
    step_slip: float


SHAPES: dict[int, LevelShape] = {
    1: LevelShape(1, 0.02, 0.02),
    2: LevelShape(2, 0.10, 0.02),
    3: LevelShape(3, 0.50, 0.03),
    4: LevelShape(4, 0.95, 0.05),
    5: LevelShape(8, 1.00, 0.20),
}
# Running values have two digits, so columns stay in place, and changes are at most 4: this is what keeps the number of
# facts about the last digit at 80, which a model of 125,000 parameters learns in seconds (9: not in a minute).
SMALLEST, LARGEST, CHANGE = 10, 99, 4
STEPS_SHARE = 0.3


@dataclass(frozen=True)
class ArithmeticProblem:
    """Operands and operators of one chain, evaluated from left to right."""

    level: int
    operands: tuple[int, ...]
    operators: tuple[str, ...]

    @property
    def question(self) -> str:
        rest = "".join(f"{op}{value}" for op, value in zip(self.operators, self.operands[1:], strict=True))
        return f"Compute {self.operands[0]}{rest}."

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
        return "Differences" if "-" in self.operators else "Sums"

    def row(self, identity: str) -> dict[str, str]:
        """One row in the MATH schema."""
        solution = worked(self)
        values = {"problem": self.question, "solution": solution, "answer": self.answer}
        return {**values, "level": f"Level {self.level}", "type": self.subject, "unique_id": identity}


def _apply(total: int, op: str, value: int) -> int:
    return total + value if op == "+" else total - value


def make_problem(level: int, rng: random.Random) -> ArithmeticProblem:
    """A problem whose running value always has two digits and changes by at most `CHANGE`."""
    operands, operators = [rng.randint(SMALLEST, LARGEST)], []
    total = operands[0]
    for _ in range(SHAPES[level].operations):
        value = rng.randint(1, CHANGE)
        op = rng.choice([op for op in "+-" if SMALLEST <= _apply(total, op, value) <= LARGEST])
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
    if rng.random() >= shape.direct_slip:
        return direct(problem)
    guesses = [guess for guess in range(SMALLEST, LARGEST + 1) if guess != problem.totals[-1]]
    return f" \\boxed{{{rng.choice(guesses)}}}"


def direct(problem: ArithmeticProblem) -> str:
    """The right answer in the direct style."""
    return f" \\boxed{{{problem.answer}}}"


def worked(problem: ArithmeticProblem) -> str:
    """The right answer in the style of steps."""
    return _steps(problem, random.Random(0), slip=0.0)


def _steps(problem: ArithmeticProblem, rng: random.Random, *, slip: float) -> str:
    """` 23-4=19,19+2=21 \\boxed{21}`; a slip changes one result, and the chain goes on from the wrong value."""
    total, lines = problem.operands[0], []
    for op, value in zip(problem.operators, problem.operands[1:], strict=True):
        result = _apply(total, op, value)
        if rng.random() < slip:
            result = _off(result, rng)
        lines.append(f"{total}{op}{value}={result}")
        total = result
    return f" {','.join(lines)} \\boxed{{{total}}}"


def _off(value: int, rng: random.Random) -> int:
    """A wrong value off by one, two or ten, of two digits unless earlier slips have led too far away."""
    wrong = [value + by for by in (-10, -2, -1, 1, 2, 10)]
    return rng.choice([result for result in wrong if SMALLEST <= result <= LARGEST] or wrong)
