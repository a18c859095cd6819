"""The arithmetic world: problems in the MATH schema, and answers that go wrong in known ways with known probabilities.

A problem asks for the value of a chain of sums and differences; its level (1 to 5) is how long the chain is. An answer
writes out one operation after the other and boxes the last result. Training answers are written in two manners, drawn
with the same probability at every level:

* ``hasty`` boxes the result of the first operation. That is right where there is only one, or where the others add
  nothing, so on most easy questions, and never on the two hardest levels.
* ``worked`` goes on to the end, but stops early with a probability that grows with the level.

A model trained on them is a sampler whose accuracy falls from nearly always to almost never. No result in the training
data is wrong: every mistake is a chain that ends too soon, and it shares its beginning with the right answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class LevelShape:
    """How questions of one level look and how often worked answers to them stop early.

    operations: length of the chain; idle: probability that all operations after the first add or subtract 0;
    stop: probability that a worked answer ends after an operation that is not the last one.
    """

    operations: int
    idle: float
    stop: float


SHAPES: dict[int, LevelShape] = {
    1: LevelShape(1, 0.0, 0.0),
    2: LevelShape(2, 0.85, 0.02),
    3: LevelShape(3, 0.35, 0.08),
    4: LevelShape(4, 0.0, 0.15),
    5: LevelShape(5, 0.0, 0.45),
}
# Running values have two digits, so columns stay in place, and changes are at most 3: that leaves 70 facts about the
# last digit, which a model of 125,000 parameters learns in 20 seconds (with 4 it needs more than twice as long).
SMALLEST, LARGEST, CHANGE = 10, 99, 3
WORKED_SHARE = 0.4


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
    """A problem whose running values have two digits; unless idle, operations after the first change the result."""
    shape = SHAPES[level]
    idle = rng.random() < shape.idle
    while True:
        problem = _draw(level, shape.operations, idle, rng)
        if idle or level == 1 or problem.totals[0] != problem.totals[-1]:
            return problem


def _draw(level: int, operations: int, idle: bool, rng: random.Random) -> ArithmeticProblem:
    operands, operators = [rng.randint(SMALLEST, LARGEST)], []
    total = operands[0]
    for position in range(operations):
        value = 0 if idle and position > 0 else rng.randint(1, CHANGE)
        op = rng.choice([op for op in "+-" if SMALLEST <= _apply(total, op, value) <= LARGEST])
        operators.append(op)
        operands.append(value)
        total = _apply(total, op, value)
    return ArithmeticProblem(level, tuple(operands), tuple(operators))


def make_answer(problem: ArithmeticProblem, rng: random.Random) -> str:
    """A training answer: hasty or worked, and where it stops, drawn with the level's probabilities."""
    if rng.random() >= WORKED_SHARE:
        return answer_after(problem, 1)
    operations = 1
    while operations < len(problem.operators) and rng.random() >= SHAPES[problem.level].stop:
        operations += 1
    return answer_after(problem, operations)


def worked(problem: ArithmeticProblem) -> str:
    """The right answer, every operation written out."""
    return answer_after(problem, len(problem.operators))


def answer_after(problem: ArithmeticProblem, operations: int) -> str:
    """The answer that boxes the running value after `operations` operations: ` 23-3=20,20+2=22 \\boxed{22}`."""
    total, lines = problem.operands[0], []
    for op, value in list(zip(problem.operators, problem.operands[1:], strict=True))[:operations]:
        result = _apply(total, op, value)
        lines.append(f"{total}{op}{value}={result}")
        total = result
    return f" {','.join(lines)} \\boxed{{{total}}}"
