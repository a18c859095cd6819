"""A short text that two expressions share when they have the same value, for grouping answers (not for grading).

Grading asks about two expressions and looks as closely as it must; grouping many answers needs one key for each. The
key is exact for rational numbers; everything else is evaluated with 60 digits, expressions with variables at fixed
points of both signs, and rounded to 30 digits.
"""

from __future__ import annotations

import hashlib
import random
from fractions import Fraction

from negpo.rewards.evaluate import Numeric, Undecided, rational_value
from negpo.rewards.expression import Node, free_symbols

_DIGITS, _KEPT = 60, 30
_POINTS = 4
_LONG = 120  # characters beyond which a key is hashed


def fingerprint(node: Node) -> str | None:
    """The key of an expression, None where it cannot be evaluated."""
    symbols = sorted(free_symbols(node))
    if not symbols and (exact := rational_value(node)) is not None:
        return _short(hex(exact.numerator) + "/" + hex(exact.denominator) if _is_long(exact) else str(exact))
    values = [_value_at(node, symbols, index) for index in range(_POINTS if symbols else 1)]
    if all(value is None for value in values):
        return None
    return _short("~".join([*symbols, *(value or "undefined" for value in values)]))


def _is_long(value: Fraction) -> bool:
    return max(abs(value.numerator), value.denominator).bit_length() > 400


def _short(text: str) -> str:
    return text if len(text) <= _LONG else hashlib.sha256(text.encode()).hexdigest()


def _value_at(node: Node, symbols: list[str], index: int) -> str | None:
    point = {}
    for name in symbols:  # a variable has the same value in every expression, whatever else stands there
        generator = random.Random(f"{name} {index}")
        sign = 1 if index % 2 == 0 else -1
        point[name] = Fraction(sign * generator.randrange(100_000, 400_000), 99_991)
    arithmetic = Numeric(_DIGITS)
    try:
        value = arithmetic.evaluate(node, point)
    except Undecided:
        return None
    return arithmetic.text(value, _KEPT)
