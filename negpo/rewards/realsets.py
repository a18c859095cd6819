r"""Subsets of the real line: ``(-\infty,3)``, ``x<3``, ``\mathbb{R}\setminus\{3\}`` and ``(-\infty,3)\cup(3,\infty)``
in one form.

The form is a sorted list of disjoint spans. End points are ordered by their numerical value and compared for equality
by the caller's exact comparison, so ``[0.333, 1]`` is never ``[\frac13, 1]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from negpo.rewards.answers import Answer, Bracketed, Collection, Combined, NamedSet, Relation, Value
from negpo.rewards.evaluate import real_value
from negpo.rewards.expression import Node, free_symbols

_INFINITY = Node("const", value="infty")
_MINUS_INFINITY = Node("neg", (_INFINITY,))


@dataclass(frozen=True)
class Span:
    """From ``low`` to ``high``; ``closed`` says whether each end belongs to it. A point has both ends equal and
    closed.
    """

    low: Node
    high: Node
    closed: tuple[bool, bool]
    order: tuple[Any, Any]  # numerical values of the end points


RealSet = list[Span]


def to_real_set(answer: Answer) -> RealSet | None:
    """The set of real numbers an answer describes, None if it describes something else."""
    if isinstance(answer, NamedSet):
        return [_span(_MINUS_INFINITY, _INFINITY, False, False)] if answer.name == "R" else None  # type: ignore[list-item]
    if isinstance(answer, Bracketed):
        return _interval(answer)
    if isinstance(answer, Collection):
        return _collection(answer)
    if isinstance(answer, Combined):
        return _combined(answer)
    if isinstance(answer, Relation):
        return _inequality(answer)
    return None


def same_set(left: RealSet, right: RealSet, equal: Callable[[Node, Node], bool | None]) -> bool | None:
    """Whether two sets are equal, end point by end point."""
    if len(left) != len(right) or any(a.closed != b.closed for a, b in zip(left, right, strict=True)):
        return False
    verdicts = [equal(x, y) for a, b in zip(left, right, strict=True) for x, y in ((a.low, b.low), (a.high, b.high))]
    return False if False in verdicts else None if None in verdicts else True


def _span(low: Node, high: Node, low_closed: bool, high_closed: bool) -> Span | None:
    order = (real_value(low), real_value(high))
    if order[0] is None or order[1] is None or order[0] > order[1]:
        return None
    return Span(low, high, (low_closed, high_closed), order)


def _interval(answer: Bracketed) -> RealSet | None:
    if len(answer.items) != 2 or not all(isinstance(item, Value) and item.node for item in answer.items):
        return None
    low, high = (item.node for item in answer.items)  # type: ignore[union-attr]
    span = _span(low, high, answer.left == "[", answer.right == "]")  # type: ignore[arg-type]
    return None if span is None else [span]


def _collection(answer: Collection) -> RealSet | None:
    """A finite set of points, or several inequalities: "or" and commas unite, "and" intersects."""
    if answer.items and all(isinstance(item, Relation) for item in answer.items):
        parts = [to_real_set(item) for item in answer.items]
        if any(part is None for part in parts):
            return None
        return _joined(answer, parts)
    spans = []
    for item in answer.items:
        node = item.node if isinstance(item, Value) else None
        span = _span(node, node, True, True) if node is not None else None
        if span is None:
            return None
        spans.append(span)
    return _normal(spans)


def _joined(answer: Collection, parts: list[RealSet | None]) -> RealSet:
    """Several conditions. ``x \\ne 9`` behind a comma takes a point out of what the others allow."""
    if answer.joiner == ",":
        holes = [part for item, part in zip(answer.items, parts, strict=True) if _excludes(item)]
        rest = [part for item, part in zip(answer.items, parts, strict=True) if not _excludes(item)]
        if holes and rest:
            return _fold([_fold(rest, ["cup"] * (len(rest) - 1)), *holes], ["cap"] * len(holes))
    return _fold(parts, ["cap" if answer.joiner == "and" else "cup"] * (len(parts) - 1))


def _excludes(item: Answer) -> bool:
    return isinstance(item, Relation) and item.ops == ("ne",)


def _combined(answer: Combined) -> RealSet | None:
    parts = [to_real_set(part) for part in answer.parts]
    return None if any(part is None for part in parts) else _fold(parts, list(answer.ops))


def _fold(parts: list[RealSet | None], ops: list[str]) -> RealSet:
    result = parts[0] or []
    for op, part in zip(ops, parts[1:], strict=True):
        other = part or []
        if op == "cup":
            result = _normal(result + other)
        else:
            result = _intersection(result, other if op == "cap" else _complement(other))
    return result


def _inequality(answer: Relation) -> RealSet | None:
    r"""``x<3``, ``-2\le x<7``, ``3>x`` and ``x\ne 3`` in one variable that stands alone."""
    nodes = [side.node if isinstance(side, Value) else None for side in answer.sides]
    if any(node is None for node in nodes):
        return None
    absolute = _absolute(answer, nodes)  # type: ignore[arg-type]
    if absolute is not None:
        return absolute
    places = [index for index, node in enumerate(nodes) if node.op == "sym"]  # type: ignore[union-attr]
    others = [node for index, node in enumerate(nodes) if index not in places]
    if len(places) != 1 or any(free_symbols(node) for node in others):  # type: ignore[arg-type]
        return None
    place = places[0]
    if answer.ops == ("ne",):
        point = _span(others[0], others[0], True, True)  # type: ignore[arg-type]
        return None if point is None else _complement([point])
    low, high, low_closed, high_closed = _MINUS_INFINITY, _INFINITY, False, False
    for index, op in enumerate(answer.ops):
        if op not in {"<", ">", "le", "ge"} or place not in {index, index + 1}:
            return None
        bound = nodes[index + 1] if place == index else nodes[index]
        closed = op in {"le", "ge"}
        if (op in {"<", "le"}) == (place == index):
            high, high_closed = bound, closed  # type: ignore[assignment]
        else:
            low, low_closed = bound, closed  # type: ignore[assignment]
    span = _span(low, high, low_closed, high_closed)
    return None if span is None else [span]


def _absolute(answer: Relation, nodes: list[Node]) -> RealSet | None:
    """``|x - c| < r`` and ``|x - c| \\ge r``."""
    if len(nodes) != 2:
        return None
    op, (left, right) = answer.ops[0], nodes
    if right.op == "abs":
        op, left, right = {"<": ">", ">": "<", "le": "ge", "ge": "le"}.get(op, ""), right, left
    center = _center(left.args[0]) if left.op == "abs" else None
    if center is None or op not in {"<", ">", "le", "ge"} or free_symbols(right):
        return None
    radius = real_value(right)
    if radius is None or radius <= 0:
        return None
    closed = op == "le" or op == ">"  # the ends of the inner span: those of its complement are the other way round
    span = _span(Node("add", (center, Node("neg", (right,)))), Node("add", (center, right)), closed, closed)
    if span is None:
        return None
    return [span] if op in {"<", "le"} else _complement([span])


def _center(node: Node) -> Node | None:
    """c of ``x - c``, with x a lone variable."""
    if node.op == "sym":
        return Node("num", value=Fraction(0))
    if node.op == "add" and len(node.args) == 2 and node.args[0].op == "sym" and not free_symbols(node.args[1]):
        return Node("neg", (node.args[1],))
    return None


def _normal(spans: list[Span]) -> RealSet:
    """Sorted, with touching and overlapping spans merged."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.order[0], not s.closed[0])):
        if not merged:
            merged.append(span)
            continue
        last = merged[-1]
        touching = span.order[0] < last.order[1] or (
            span.order[0] == last.order[1] and (span.closed[0] or last.closed[1])
        )
        if not touching:
            merged.append(span)
            continue
        longer = span.order[1] > last.order[1]
        closed = span.closed[1] if longer else last.closed[1] or (span.order[1] == last.order[1] and span.closed[1])
        high = span if longer else last
        merged[-1] = Span(last.low, high.high, (last.closed[0], closed), (last.order[0], high.order[1]))
    return merged


def _complement(spans: RealSet) -> RealSet:
    result: list[Span] = []
    low, low_order, low_closed = _MINUS_INFINITY, -math.inf, False
    for span in _normal(spans):
        if low_order < span.order[0]:
            result.append(Span(low, span.low, (low_closed, not span.closed[0]), (low_order, span.order[0])))
        low, low_order, low_closed = span.high, span.order[1], not span.closed[1]
    if low_order < math.inf:
        result.append(Span(low, _INFINITY, (low_closed, False), (low_order, math.inf)))
    return result


def _intersection(left: RealSet, right: RealSet) -> RealSet:
    result = []
    for a in left:
        for b in right:
            low = a if (a.order[0], not a.closed[0]) > (b.order[0], not b.closed[0]) else b
            high = a if (a.order[1], a.closed[1]) < (b.order[1], b.closed[1]) else b
            closed = (low.closed[0], high.closed[1])
            if low.order[0] < high.order[1] or (low.order[0] == high.order[1] and all(closed)):
                result.append(Span(low.low, high.high, closed, (low.order[0], high.order[1])))
    return _normal(result)
