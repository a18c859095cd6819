r"""Typed answers: the kinds of thing an answer text can mean. :mod:`negpo.rewards.reading` finds out which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from negpo.rewards.expression import Node, free_symbols
from negpo.rewards.units import Unit

KINDS = ("integer", "number", "expression", "interval", "set", "tuple", "matrix", "relation", "unit", "text", "choice")
TASK_KINDS = ("countdown",)  # golds that name a task: any answer that solves it is right


@dataclass(frozen=True)
class Value:
    """A number or expression, perhaps with a unit, a percent sign, a modulus (``7 \\pmod{12}``), or marked as rounded
    (``\\approx 3.14``). ``loose``: its unit are plain letters (``5 m``) and may also be variables.
    """

    latex: str
    node: Node | None
    unit: Unit = ()
    percent: bool = False
    rounded: bool = False
    modulus: str = ""
    error: str = ""
    loose: bool = False


@dataclass(frozen=True)
class Text:
    """Words. Equal only to the same words, ignoring case, blanks and punctuation."""

    key: str


@dataclass(frozen=True)
class Choice:
    """A choice letter; ``rest`` is what stands behind its label in ``(C) 7``."""

    letter: str
    rest: Answer | None = None


@dataclass(frozen=True)
class Based:
    """Digits with a base subscript."""

    digits: str
    base: int


@dataclass(frozen=True)
class Ratio:
    """``1:2:3`` or a clock time; ``suffix`` holds am or pm."""

    parts: tuple[Answer, ...]
    clock: bool
    suffix: str = ""


@dataclass(frozen=True)
class Bracketed:
    """An ordered tuple, a vector or an interval, by its brackets: ``(`` or ``[``, ``)`` or ``]``."""

    left: str
    right: str
    items: tuple[Answer, ...]


@dataclass(frozen=True)
class Collection:
    """Unordered values: ``{1,2}``, ``1,2``, ``x=1 or x=2``, ``\\pm 3``. ``joiner`` is a comma, "or" or "and"."""

    items: tuple[Answer, ...]
    joiner: str = ","


@dataclass(frozen=True)
class Combined:
    """Sets joined by union, intersection or difference, in the order written. ``ops[i]`` joins parts i and i+1."""

    parts: tuple[Answer, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True)
class NamedSet:
    """``R`` (all real numbers), ``Z``, ``N``, ``Q`` or ``C``."""

    name: str


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True)
class Relation:
    """``sides[i] ops[i] sides[i+1]`` with ops among ``= < > le ge ne equiv``."""

    sides: tuple[Answer, ...]
    ops: tuple[str, ...]


Answer = Value | Text | Choice | Based | Ratio | Bracketed | Collection | Combined | NamedSet | Matrix | Relation


@dataclass(frozen=True)
class Reading:
    """One way to read a text. ``key`` is its canonical spelling: equal keys are equal answers."""

    answer: Answer
    key: str
    text_key: str = field(compare=False, default="")


def readable(answer: Answer) -> bool:
    """Whether every value inside was understood by the small parser."""
    if isinstance(answer, Value):
        return answer.node is not None
    parts: Sequence[Answer] = ()
    if isinstance(answer, Bracketed | Collection):
        parts = answer.items
    elif isinstance(answer, Combined | Ratio):
        parts = answer.parts
    elif isinstance(answer, Relation):
        parts = answer.sides
    elif isinstance(answer, Matrix):
        parts = tuple(cell for row in answer.rows for cell in row)
    return all(readable(part) for part in parts)


def is_name(answer: Answer) -> bool:
    """Whether an answer can be the left side of "name = value" and be dropped: x, f(2), m+n, AB, the words "Area"."""
    if isinstance(answer, Text | Choice):
        return True
    if isinstance(answer, Bracketed):
        return all(is_name(item) for item in answer.items)
    if not isinstance(answer, Value):
        return False
    if answer.node is None:
        return not re.search(r"\d", answer.latex)
    symbols = free_symbols(answer.node)
    # 2x = 10 and x^2 = 4 do not state x, 5x - 7y = 0 states a line; m + n = 27 and |z| = 5 state what was asked.
    if len(symbols) > 1:
        return _only_symbols(answer.node)
    return len(symbols) == 1 and answer.node.op in {"sym", "abs", "sin", "cos", "tan"}


def _only_symbols(node: Node) -> bool:
    """No coefficients and no constant terms; exponents and degrees of roots may be numbers."""
    if node.op in {"pow", "root"}:
        return _only_symbols(node.args[0])
    return node.op == "sym" or (bool(node.args) and all(_only_symbols(arg) for arg in node.args))


def answer_kind(answer: Answer) -> str:
    """Name of the kind of an answer, as in ``Verdict.kind``."""
    if isinstance(answer, Value):
        if answer.unit or answer.percent:
            return "unit"
        if answer.node is None or free_symbols(answer.node) or answer.node.op not in {"num", "neg"}:
            return "expression"
        leaf = answer.node.args[0] if answer.node.op == "neg" else answer.node
        whole = leaf.op == "num" and leaf.value.denominator == 1  # type: ignore[union-attr]
        return "integer" if whole else "number" if leaf.op == "num" else "expression"
    if isinstance(answer, Bracketed):
        return "interval" if answer.left + answer.right != "()" and len(answer.items) == 2 else "tuple"
    names = {
        Text: "text", Choice: "choice", Based: "number", Ratio: "unit", Collection: "set", Combined: "interval",
        NamedSet: "interval", Matrix: "matrix", Relation: "relation",
    }  # fmt: skip
    return names[type(answer)]
