r"""Countdown: an expression over given numbers that hits a target, checked in exact rational arithmetic.

The gold answer names the task, ``24 from 3, 5, 7``: every number is used exactly once (the rule of the Countdown tasks
of arXiv 2404.03683 and TinyZero), with ``+ - * /`` and brackets. Any expression that hits the target is right, so a
question has dozens of right answers. The parser knows digits, brackets, four operations and the LaTeX of those; nothing
is evaluated by Python. Whatever it cannot read is *unknown* where it may be another notation for the same, and wrong
where it is broken or against the rules.
"""

from __future__ import annotations

import operator
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from negpo.errors import DataError
from negpo.rewards.extract import extract_answer
from negpo.rewards.verdict import Status, Verdict

KIND = "countdown"
MAX_NUMBERS = 32  # of a task, of at most 18 digits each: no value has more digits than all of them together
_GOLD = re.compile(r"\s*(-?\d{1,18})\s+from\s+(\d{1,18}(?:\s*,\s*\d{1,18})*)\s*")
_TOKEN = re.compile(r"\s*(\d+|[-+*/()])")
_SPELT = (  # other spellings of the four operations and of brackets
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×·⋅∗]"), "*"),
    (re.compile(r"(?<=[\d)\s])[xX](?=[\s\d(])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])|[÷∕]"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\(?:left|right|bigl?|bigr|[,;!:])(?![a-zA-Z])|[$~]|\\[ ]"), ""),
    (re.compile(r"[\[{]"), "("),
    (re.compile(r"[\]}]"), ")"),
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_LOOSE = re.compile(r"[\d(][\d\s()+\-*/]*[\d)]")
_FOREIGN = re.compile(r"\\[a-zA-Z]+|[^\x00-\x7f]")
_SAID = ("boxed", "answer tag")  # where a response says that this is its answer
_NEGATE = "negate"
NO_OPERATION = "no operation"
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, _NEGATE: 3}


_OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


@dataclass(frozen=True)
class Task:
    """Numbers to be used, each exactly once, and the value to be hit."""

    numbers: tuple[int, ...]
    target: int

    @property
    def gold(self) -> str:
        """The task as a gold answer, ``24 from 3, 5, 7``."""
        return f"{self.target} from {', '.join(map(str, self.numbers))}"


class NotAnExpression(ValueError):
    """The text is no expression of the four operations; the message says why."""


def is_gold(text: str) -> bool:
    """Whether a gold answer is a Countdown task. No number, formula or word has this form."""
    return _GOLD.fullmatch(text) is not None


@lru_cache(maxsize=65_536)
def read_gold(text: str) -> Task:
    """The task of a gold answer.

    Raises:
        DataError: not of the form ``24 from 3, 5, 7``, or more numbers than `MAX_NUMBERS`.
    """
    found = _GOLD.fullmatch(text)
    if found is None:
        raise DataError(f"a Countdown task looks like '24 from 3, 5, 7', found {text[:80]!r}", field="answer")
    numbers = tuple(map(int, found[2].split(",")))
    if len(numbers) > MAX_NUMBERS:
        raise DataError(f"a Countdown task has at most {MAX_NUMBERS} numbers, found {len(numbers)}", field="answer")
    return Task(numbers, int(found[1]))


def tokens(text: str) -> list[str]:
    """Digits, operations and brackets of an expression.

    Raises:
        NotAnExpression: another sign stands there.
    """
    found, place = [], 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise NotAnExpression(f"{text[place:].strip()[:1]!r} is no number, operation or bracket")
        found.append(match[1])
        place = match.end()
    return found


def to_postfix(expression: Sequence[str]) -> list[str]:
    """Tokens in postfix order (shunting yard, so brackets may be nested as deeply as they like).

    Raises:
        NotAnExpression: operands, operations and brackets do not fit together.
    """
    output: list[str] = []
    waiting: list[str] = []
    operand_next = True
    for token in expression:
        if token.isdigit() or token == "(":
            if not operand_next:
                raise NotAnExpression(f"{NO_OPERATION} before {token!r}")
            (output if token.isdigit() else waiting).append(token)
            operand_next = token == "("
            continue
        if operand_next and token == "-":
            waiting.append(_NEGATE)
            continue
        if operand_next:
            raise NotAnExpression(f"no operand before {token!r}")
        if token == ")":
            while waiting and waiting[-1] != "(":
                output.append(waiting.pop())
            if not waiting:
                raise NotAnExpression("a bracket is closed that was never opened")
            waiting.pop()
            continue
        while waiting and waiting[-1] != "(" and _PRECEDENCE[waiting[-1]] >= _PRECEDENCE[token]:
            output.append(waiting.pop())
        waiting.append(token)
        operand_next = True
    if operand_next:
        raise NotAnExpression("it ends where an operand should follow" if expression else "it is empty")
    if "(" in waiting:
        raise NotAnExpression("a bracket is never closed")
    return output + waiting[::-1]


def value_of(postfix: Sequence[str]) -> Fraction | None:
    """The exact value; None where something is divided by zero."""
    stack: list[Fraction] = []
    for token in postfix:
        if token.isdigit():
            stack.append(Fraction(int(token)))
            continue
        right = stack.pop()
        if token == _NEGATE:
            stack.append(-right)
            continue
        if token == "/" and right == 0:
            return None
        stack.append(_OPERATIONS[token](stack.pop(), right))
    return stack[0]


def check(text: str, task: Task) -> tuple[Status, str]:
    """Status and reason of one answer text: an expression, or ``expression = value``."""
    left, *claimed = _spelt(text).split("=")
    try:
        expression = tokens(left)
    except NotAnExpression as error:
        foreign = _FOREIGN.search(left)
        if foreign:
            return "unknown", f"{foreign[0]!r} is not a notation that is read here"
        return "wrong", f"not an expression: {error}"
    used = Counter(token.lstrip("0") or "0" for token in expression if token.isdigit())
    if used != Counter(map(str, task.numbers)):  # before any arithmetic: what is evaluated is as small as the task
        return "wrong", "does not use each of the numbers exactly once"
    try:
        value = value_of(to_postfix(expression))
    except NotAnExpression as error:  # "2(3+4)" is a product to some, "6/2(1+2)" two different ones
        implicit = NO_OPERATION in str(error) and "(" in str(error)
        return "unknown" if implicit else "wrong", f"not an expression: {error}"
    if value is None:
        return "wrong", "divides by zero"
    if any(part.strip() != str(task.target) for part in claimed):
        return "wrong", "claims another value than the target"
    return ("correct", "hits the target") if value == task.target else ("wrong", f"gives {value}")


def _spelt(text: str) -> str:
    """`text` with the four operations and brackets in ASCII."""
    text = _FRACTION.sub(r"((\1)/(\2))", text)
    for pattern, plain in _SPELT:
        text = pattern.sub(plain, text)
    return text


def grade_countdown(response: str, gold: str) -> Verdict:
    """The verdict of a response on the task of a gold answer; never slow.

    The expression stands in the last box or ``<answer>`` tag, after "the answer is", or it is the whole response; else
    the last one in the text counts.

    Raises:
        DataError: `gold` is no Countdown task.
    """
    started, task = time.perf_counter(), read_gold(gold)
    extraction = extract_answer(response)
    text, source = extraction.text, extraction.source
    if source not in _SAID:  # the last number of a text is no expression
        loose = [found for found in _LOOSE.findall(_spelt(response[-4000:])) if re.search(r"[-+*/]", found)]
        text, source = (loose[-1], "last expression") if loose else (text, source)
    if text is None:
        return Verdict(
            "wrong", extraction.reason or "no answer found", kind=KIND, seconds=time.perf_counter() - started
        )
    return Verdict(*_cached(text, task), text, source, KIND, seconds=time.perf_counter() - started)


@lru_cache(maxsize=65_536)
def _cached(text: str, task: Task) -> tuple[Status, str]:
    return check(text, task)
