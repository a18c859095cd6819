"""Reading units of measurement, exactly: ``m/s^2``, ``km h^{-1}``, ``square inches``, ``sq. in.``, "dollars per hour".

A unit is a sorted tuple of (name, power). Known units carry dimensions and an exact factor; unknown words ("students",
"ways") are units of their own that equal only themselves. :mod:`negpo.rewards.unit_table` holds the names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from negpo.rewards.number_words import FRACTION_WORDS
from negpo.rewards.unit_table import (
    AFTER,
    COUNTERS,
    DEGREES,
    FILLER_PHRASES,
    FILLERS,
    LETTER_SYMBOLS,
    NOT_UNITS,
    SQUARED,
    UNITS,
)

Unit = tuple[tuple[str, int], ...]

MAX_UNKNOWN = 3  # words that are no known unit
_MAX_POWER = 12


class _NoUnitError(Exception):
    pass


def parse_unit(pieces: Sequence[str], *, known_only: bool = False) -> Unit | None:
    """A unit from the pieces behind a number, () for pure filler, None if they are no unit.

    Args:
        pieces: words and the signs ``/ * ^ - { } ( ) .`` in their order, numbers as digits, ``\\frac`` for fractions.
        known_only: unknown words make it no unit.
    """
    try:
        parser = _Parser(_without_fillers(list(pieces)), known_only)
        powers = parser.product()
        if parser.position < len(parser.pieces):
            return None
    except _NoUnitError:
        return None
    # "5 units" is 5; "5 square units" is an area.
    return tuple(sorted((name, power) for name, power in powers.items() if power and (name, power) != ("unit", 1)))


def is_unit_text(text: str) -> bool:
    """Whether a text is made of known units only: "cm^2", "m/s", " km", not "x" or "students"."""
    pieces = re.findall(r"[^\W\d_]+|\d+|\S", text)
    return bool(pieces) and bool(parse_unit(pieces, known_only=True))


def is_letter_symbol(letter: str) -> bool:
    """Whether one upright letter behind a number is a unit symbol."""
    return letter in LETTER_SYMBOLS


def _without_fillers(pieces: list[str]) -> list[str]:
    lowered = [piece.lower() for piece in pieces]
    for phrase in FILLER_PHRASES:
        if tuple(lowered[-len(phrase) :]) == phrase:
            pieces, lowered = pieces[: -len(phrase)], lowered[: -len(phrase)]
    return pieces


class _Parser:
    def __init__(self, pieces: list[str], known_only: bool):
        self.pieces, self.known_only, self.position, self.unknown = pieces, known_only, 0, 0

    def peek(self) -> str:
        return self.pieces[self.position] if self.position < len(self.pieces) else ""

    def take(self, *values: str) -> bool:
        if self.peek() and self.peek().lower() in values:
            self.position += 1
            return True
        return False

    def product(self) -> dict[str, int]:
        """Factors, each in the numerator or, behind ``/`` or "per", in the denominator."""
        powers: dict[str, int] = {}
        sign = 1
        while self.peek() and self.peek() not in {")", "}"}:
            if self.take("/", "per", "每", "por", "pro", "par"):
                sign = -1
                if not self.peek():
                    raise _NoUnitError
                continue
            if self.take("*", "-", ".", "·"):
                continue
            for name, power in self.factor().items():
                powers[name] = powers.get(name, 0) + sign * power
        return powers

    def factor(self) -> dict[str, int]:
        power = 1
        if self.peek().lower() in SQUARED and self.position + 1 < len(self.pieces):
            power = SQUARED[self.peek().lower()]
            self.position += 1
            self.take(".")
        base = self.atom()
        if self.take("^"):
            power *= self.exponent()
        elif self.peek().lower() in AFTER:
            power *= AFTER[self.peek().lower()]
            self.position += 1
        return {name: old * power for name, old in base.items()}

    def exponent(self) -> int:
        braced = self.take("{")
        negative = self.take("-")
        digits = self.peek()
        if not digits.isdigit() or not 0 < int(digits[:3]) <= _MAX_POWER:
            raise _NoUnitError
        self.position += 1
        if braced and not self.take("}"):
            raise _NoUnitError
        return -int(digits) if negative else int(digits)

    def atom(self) -> dict[str, int]:
        for opening, closing in (("{", "}"), ("(", ")")):
            if self.take(opening):
                inner = self.product()
                if not self.take(closing):
                    raise _NoUnitError
                return inner
        if self.take("\\frac"):
            top, bottom = self.atom(), self.atom()
            return {name: top.get(name, 0) - bottom.get(name, 0) for name in top | bottom}
        word = self.peek()
        if not word or (not word[0].isalpha() and word not in UNITS):
            raise _NoUnitError
        self.position += 1
        if word.lower() in {"deg", "degree", "degrees"} and self.peek().lower() in DEGREES:
            self.position += 1
            return dict(base_unit(DEGREES[self.pieces[self.position - 1].lower()]))
        if word.lower() in FILLERS:
            return {}
        if word == "in" and self.peek()[:1].isalpha() and self.peek().lower() != "per":
            raise _NoUnitError  # "3 in a row", "2 in five": not inches
        return dict(self.named(word))

    def named(self, word: str) -> Unit:
        found = base_unit(word)
        if found[0][0] in UNITS:
            return found
        if word in COUNTERS:  # "3 个" counts things; the thing may go unnamed
            return ()
        self.unknown += 1
        foreign = not word.isascii() and not re.fullmatch(r"[\w\u00c0-\u024f]+", word, re.ASCII)
        if self.known_only or self.unknown > MAX_UNKNOWN or len(word) < 2 or foreign:
            raise _NoUnitError
        if word.lower() in NOT_UNITS or word.lower() in AFTER or word.lower() in FRACTION_WORDS:
            raise _NoUnitError
        return found


def base_unit(word: str) -> Unit:
    """The canonical name of a unit word as a unit; an unknown word stands for itself, in lower case and singular."""
    for spelling in (word, word.lower()) if len(word) > 1 else (word,):
        for name in (spelling, spelling.removesuffix("s"), spelling.removesuffix("es"), spelling[:-3] + "y"):
            plural = name == spelling or (spelling.endswith("s") and len(name) > 1)
            if plural and name in UNITS and (name != spelling[:-3] + "y" or spelling.endswith("ies")):
                return ((_canonical(name), 1),)
    word = word.lower()
    return ((word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 2 else word, 1),)


def _canonical(name: str) -> str:
    return next(first for first, entry in UNITS.items() if entry == UNITS[name])


def base_units(unit: Unit) -> tuple[Fraction, str]:
    """The factor to the base units of a unit's dimensions, and the dimensions as text."""
    factor, dimensions = _measure(unit)
    return factor, " ".join(f"{name}^{power}" for name, power in sorted(dimensions.items()))


def conversion(source: Unit, target: Unit) -> Fraction | None:
    """Factor from one unit to the other; None when they measure different things."""
    if source == target:
        return Fraction(1)
    for one, other in ((source, target), (target, source)):
        if len(one) == 1 and one[0][0] == "unit" and _measure(other)[1] == {"length": one[0][1]}:
            return Fraction(1)  # square units for square metres
    (first, left), (second, right) = _measure(source), _measure(target)
    return first / second if left == right else None


def _measure(unit: Unit) -> tuple[Fraction, dict[str, int]]:
    """Factor and powers of the dimensions; an unknown word is a dimension of its own."""
    factor = Fraction(1)
    dimensions: dict[str, int] = {}
    for name, power in unit:
        parts, size = UNITS.get(name, (((f"word {name}", 1),), Fraction(1)))
        for dimension, exponent in parts:
            dimensions[dimension] = dimensions.get(dimension, 0) + exponent * power
        factor *= size**power
    return factor, {name: power for name, power in dimensions.items() if power}
