r"""Grouping answers by value, so that a majority vote counts ``\frac12``, ``0.5`` and ``1/2`` as one answer.

Equality with a gold is not transitive (``12`` counts for ``12 cm`` and for ``12 m``, which differ), so keys are given
to all answers of a problem together: an answer without unit joins the one with a unit if only one fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from negpo.rewards.answers import (
    Answer,
    Based,
    Bracketed,
    Choice,
    Collection,
    Combined,
    Matrix,
    NamedSet,
    Ratio,
    Relation,
    Text,
    Value,
)
from negpo.rewards.compare import Comparison
from negpo.rewards.expression import Node, number
from negpo.rewards.fingerprint import fingerprint
from negpo.rewards.reading import parse_answer
from negpo.rewards.realsets import to_real_set
from negpo.rewards.tokens import AnswerError
from negpo.rewards.units import base_units

_PERCENT = "%"


def vote_keys(answers: Sequence[str | None], kind: str | None = None) -> list[str | None]:
    """One key per answer of a problem; equal keys mean equal value, None stays None (no answer).

    Args:
        answers: the *extracted* answers (``Verdict.extracted``) of all samples of one problem, in any spelling.
        kind: how they are read, as in :func:`negpo.rewards.grade`.

    Returns:
        Texts to count: the majority answer is the commonest key. What cannot be read is its own spelling without
        blanks. Two answers that the default grader holds for equal may still get two keys where only a symbolic engine
        could tell (sums, integrals).
    """
    found = [None if answer is None else _key(answer, kind) for answer in answers]
    with_unit: dict[str, set[str]] = {}
    for entry in found:
        if entry is not None and entry.unit:
            for bare in entry.bare:
                with_unit.setdefault(bare, set()).add(entry.text)
    keys: list[str | None] = []
    for entry in found:
        joined = with_unit.get(entry.text, set()) if entry is not None and not entry.unit else set()
        keys.append(next(iter(joined)) if len(joined) == 1 else None if entry is None else entry.text)
    return keys


class _Key:
    """``text`` is the key; an answer with a unit (or a percent sign) also has the keys of its number without it."""

    def __init__(self, text: str, bare: Sequence[str] = ()):
        self.text, self.bare, self.unit = text, bare, bool(bare)


def _key(answer: str, kind: str | None) -> _Key:
    try:
        parsed = parse_answer(answer, kind)[0].answer
        return _quantity(parsed) if isinstance(parsed, Value) else _Key(_structure(parsed))
    except (AnswerError, RecursionError):
        return _Key("text:" + "".join(answer.split()).lower())


def _quantity(value: Value) -> _Key:
    if not (value.unit or value.percent) or value.node is None:
        return _Key(_value(value))
    bare = _number(value.node)
    if value.percent:
        hundredth = _number(Node("div", (value.node, number(100))))
        return _Key(bare + _PERCENT, [bare, hundredth])
    factor, dimensions = base_units(value.unit)
    return _Key(f"{_scaled(value.node, factor)} {dimensions}", [bare])


def _scaled(node: Node, factor: Fraction) -> str:
    return _number(node if factor == 1 else Node("mul", (node, number(factor))))


def _number(node: Node) -> str:
    return fingerprint(node) or f"tree:{node}"


def _value(value: Value) -> str:
    if value.node is None:
        return "latex:" + "".join(value.latex.split())
    return _number(value.node)


def _structure(answer: Answer) -> str:
    """The key of an answer inside of another one, or of one that is no plain value."""
    for types, make in _MAKERS:
        if isinstance(answer, types):
            return make(answer)
    raise AssertionError(type(answer))


def _bracketed(answer: Bracketed) -> str:
    left, right = answer.left, answer.right
    if len(answer.items) > 2 and left + right == "[]":
        left, right = "(", ")"
    return left + ",".join(map(_structure, answer.items)) + right


def _collection(answer: Collection) -> str:
    if any(isinstance(item, Relation) for item in answer.items) and (spans := _spans(answer)):
        return spans
    items = sorted({_structure(item) for item in answer.items})
    return items[0] if len(items) == 1 else "{" + ",".join(items) + "}"


def _matrix(answer: Matrix) -> str:
    rows = [[_structure(cell) for cell in row] for row in answer.rows]
    if all(len(row) == 1 for row in rows) and len(rows) > 1:
        return "(" + ",".join(row[0] for row in rows) + ")"  # a column is the vector (a, b, c)
    return "matrix:" + ";".join(",".join(row) for row in rows)


def _relation(answer: Relation) -> str:
    if spans := _spans(answer):
        return spans
    try:
        value = Comparison().stated_value(answer)
    except AnswerError:
        value = None
    if value is not None:
        return _structure(value)
    return f" {' '.join(answer.ops)} ".join(map(_structure, answer.sides))


def _spans(answer: Answer) -> str:
    """Inequalities and unions of intervals by the set of numbers they describe; "" for everything else."""
    spans = to_real_set(answer)
    if spans is None:
        return ""
    texts = [
        ("[" if span.closed[0] else "(")
        + ",".join(_number(end) for end in (span.low, span.high))
        + ("]" if span.closed[1] else ")")
        for span in spans
    ]
    return "∪".join(texts) or "{}"


def _combined(answer: Combined) -> str:
    return _spans(answer) or " ".join(map(_structure, answer.parts)) + " ".join(answer.ops)


def _ratio(answer: Ratio) -> str:
    nodes = [part.node for part in answer.parts if isinstance(part, Value) and part.node is not None]
    if answer.clock or len(nodes) < len(answer.parts):
        return ":".join(map(_structure, answer.parts)) + answer.suffix
    return "ratio:" + ":".join(_number(Node("div", (node, nodes[0]))) for node in nodes[1:])


_MAKERS: list[tuple[type, Callable[..., str]]] = [
    (Value, lambda answer: _quantity(answer).text),
    (Text, lambda answer: "text:" + answer.key),
    (Choice, lambda answer: "choice:" + answer.letter),
    (Based, lambda answer: f"{answer.digits.lstrip('0') or '0'}_{answer.base}"),
    (Ratio, _ratio),
    (Bracketed, _bracketed),
    (Collection, _collection),
    (Combined, _combined),
    (NamedSet, lambda answer: _spans(answer) or answer.name),
    (Matrix, _matrix),
    (Relation, _relation),
]
