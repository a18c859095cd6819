"""Number words and units of measurement, exact.

A unit is a sorted tuple of (name, power). Known units carry a dimension and an exact factor to it; unknown words
("students", "ways") are units of their own that equal only themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

Unit = tuple[tuple[str, int], ...]

_UNITS: dict[str, tuple[str, Fraction]] = {}


def _define(dimension: str, entries: dict[str, str]) -> None:
    for names, factor in entries.items():
        for name in names.split():
            _UNITS[name] = (dimension, Fraction(factor))


_define("length", {
    "mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100", "dm decimeter": "1/10",
    "m meter metre": "1",
    "km kilometer kilometre": "1000", "in inch inches": "127/5000", "ft foot feet": "381/1250", "yd yard": "1143/1250",
    "mi mile": "201168/125",
})  # fmt: skip
_define("mass", {
    "mg milligram": "1/1000", "g gram gm": "1", "kg kilogram": "1000", "lb pound": "45359237/100000",
    "oz ounce": "45359237/1600000",
})  # fmt: skip
_define("time", {
    "s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400", "week": "604800",
    "month": "2629746", "year yr": "31556952",
})  # fmt: skip
_define("volume", {"ml milliliter millilitre": "1/1000", "l liter litre": "1"})
_define("money", {"cent ¢": "1/100", "dollar usd": "1"})
_define("euro", {"euro": "1"})
_define("angle", {"deg degree": "1"})

# Words that only say "this is a unit", and spellings of derived units.
_FILLERS = {"unit", "the", "of", "a"}
_DERIVED: dict[str, tuple[tuple[str, int], ...]] = {
    "mph": (("mi", 1), ("h", -1)), "kmph": (("km", 1), ("h", -1)), "kph": (("km", 1), ("h", -1)),
}  # fmt: skip
# After a number these turn it into a statement, a hedge or a condition, never into a quantity.
_NOT_UNITS = {
    "or", "and", "more", "less", "than", "at", "least", "most", "not", "no", "if", "when", "any", "up", "to", "over",
    "under", "about",
    "mod", "is", "are", "for", "where", "but", "maybe", "else", "only", "all", "with", "without", "plus", "minus",
    "times", "wrong",
    "incorrect", "false", "unless", "given", "because", "since", "so", "then", "base", "from", "by", "out", "choose",
}  # fmt: skip

_ONES = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10,
    "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18,
    "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip


def words_to_number(words: Sequence[str]) -> int | None:
    """The value of "twenty-one" or "three hundred and five"; None unless every word belongs to a number."""
    total = current = 0
    seen = False
    for word in " ".join(words).lower().replace("-", " ").split():
        if word == "and" and seen:
            continue
        if word in _ONES or word in _TENS:
            value = _ONES.get(word, _TENS.get(word, 0))
            # "one two" and "twenty eleven" are not numbers.
            if current % 100 and not (current % 100 >= 20 and current % 10 == 0 and 0 < value < 10):
                return None
            current += value
        elif word in SCALES and seen:
            if SCALES[word] == 100:
                current *= 100
            else:
                total, current = total + current * SCALES[word], 0
        else:
            return None
        seen = True
    return total + current if seen else None


def parse_unit(text: str) -> Unit | None:
    """A unit from the text behind a number ("m/s", "square inches", "cm^2"), () for pure filler, None if it is no
    unit.
    """
    pieces = re.findall(r"[A-Za-z¢]+|\^\s*\{?\s*-?\d+\s*\}?|[/*]|\S", text)
    powers: dict[str, int] = {}
    sign, pending, words = 1, 1, 0
    last: list[tuple[str, int]] = []
    for piece in pieces:
        if piece[0] == "^":
            if len(piece) == 1:
                return None
            extra = int(re.sub(r"[^\d-]", "", piece))
            for name, power in last:
                powers[name] += power * (extra - 1)
            continue
        if piece == "/" or piece.lower() == "per":
            sign, last = -1, []
            continue
        if piece in {"*", "-", "."}:
            continue
        if (not piece[0].isalpha() and piece != "¢") or piece.lower() in _NOT_UNITS:
            return None
        if piece.lower() in {"square", "sq", "cubic", "cu", "squared", "cubed"}:
            power = 3 if piece.lower().startswith("cu") else 2
            if piece.lower().endswith("ed"):
                for name, old in last:
                    powers[name] += old * (power - 1)
            else:
                pending = power
            continue
        words += 1
        last = [(name, power * sign * pending) for name, power in _base_unit(piece)]
        for name, power in last:
            powers[name] = powers.get(name, 0) + power
        pending = 1
    if words > 4:
        return None
    return tuple(sorted((name, power) for name, power in powers.items() if power and name not in _FILLERS))


def _base_unit(word: str) -> tuple[tuple[str, int], ...]:
    # Capital letters matter only for single letters: M is not m.
    word = word if len(word) == 1 else word.lower()
    if word in _DERIVED:
        return _DERIVED[word]
    if word not in _UNITS and word.endswith("s") and len(word) > 2:
        singular = word[:-1]
        word = singular if singular in _UNITS or not word.endswith("ss") else word
    return ((_canonical(word), 1),)


def _canonical(word: str) -> str:
    """The first name of a known unit, the word itself otherwise."""
    if word not in _UNITS:
        return word
    return next(name for name, entry in _UNITS.items() if entry == _UNITS[word])


def base_units(unit: Unit) -> tuple[Fraction, str]:
    """The factor to the base units of a unit's dimensions, and the dimensions as text."""
    factor, dimensions = _measure(unit)
    return factor, " ".join(f"{name}^{power}" for name, power in sorted(dimensions.items()))


def conversion(source: Unit, target: Unit) -> Fraction | None:
    """Factor from one unit to the other; None when they measure different things."""
    if source == target:
        return Fraction(1)
    (first, left), (second, right) = _measure(source), _measure(target)
    return first / second if left == right else None


def _measure(unit: Unit) -> tuple[Fraction, dict[str, int]]:
    """Factor and powers of the dimensions; an unknown word is a dimension of its own."""
    factor = Fraction(1)
    dimensions: dict[str, int] = {}
    for name, power in unit:
        dimension, size = _UNITS.get(name, (f"word {name}", Fraction(1)))
        dimensions[dimension] = dimensions.get(dimension, 0) + power
        factor *= size**power
    return factor, {name: power for name, power in dimensions.items() if power}
