"""Values among the typed answers: numbers and expressions with units, percent signs, currencies, bases, words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from negpo.rewards.answers import Answer, Based, Text, Value
from negpo.rewards.evaluate import rational_value
from negpo.rewards.expression import Node, number, parse_expression
from negpo.rewards.number_words import FRACTION_WORDS, SCALES, words_to_number
from negpo.rewards.tokens import AnswerError, Token, render, split_top
from negpo.rewards.unit_table import AFTER
from negpo.rewards.units import Unit, conversion, is_letter_symbol, parse_unit

_PUNCTUATION = set(".,;{}()!\"'")
_APPROXIMATELY = {"approximately", "about", "roughly", "approx", "约", "大约"}
_CURRENCIES = {"dollar": "dollar", "euro": "euro", "pounds": "gbp", "yen": "yen", "rupee": "rupee", "cent": "cent"}
_CURRENCY_WORDS = {"usd": "dollar", "us": "dollar", "eur": "euro", "gbp": "gbp", "rs": "rupee", "inr": "rupee",
                   "rmb": "yuan", "cny": "yuan", "jpy": "yen"}  # fmt: skip
_PERCENT = {("percent",), ("pct",), ("per", "cent"), ("percentage",), ("percentage", "points"), ("percentage", "point"),
            ("percents",), ("pc",)}  # fmt: skip
_TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc", "cis"}
_UNIT_COMMANDS = {"frac": "\\frac", "deg": "deg", "mu": "μ", "Omega": "Ω", "dollar": "dollar", "euro": "euro",
                  "pounds": "gbp", "yen": "yen", "rupee": "rupee", "cent": "cent"}  # fmt: skip


def text_key(tokens: Sequence[Token]) -> str:
    """Letters, digits and signs of a text in lower case, without a leading article and without the ending of ordinal
    numbers ("June 20th").
    """
    kept = "()[]" if _half_open(tokens) else ""
    words = [token for token in tokens if token.value not in _PUNCTUATION or token.value in (*kept,)]
    if len(words) > 1 and words[0].kind == "word" and words[0].value.lower() in {"the", "a", "an"}:
        words = words[1:]
    joined = "\x1f".join(token.value.lower() for token in words)
    joined = re.sub(r"(?<=\d)\x1f(?:st|nd|rd|th|s\x1ft|n\x1fd|r\x1fd|t\x1fh)(?=\x1f|$)", "", joined)
    return joined.replace("\x1f", "")


def _half_open(tokens: Sequence[Token]) -> bool:
    """Whether brackets of different kinds belong together, as in t(0,4]: then they say something."""
    waiting: list[str] = []
    for value in (token.value for token in tokens):
        if value in ("(", "["):
            waiting.append(value)
        elif value in (")", "]") and (not waiting or waiting.pop() + value not in ("()", "[]")):
            return True
    return bool(waiting)


# -- words -------------------------------------------------------------------------------------------------------------


def number_words(tokens: list[Token]) -> Answer | None:
    """A number written in words, perhaps with a unit or a percent sign, None if the tokens are anything else."""
    if not tokens or not all(token.kind in {"word", "cmd"} or token.value in {"-", "%"} for token in tokens):
        return None
    words = [token.value for token in tokens if token.value != "-"]
    if tokens[0].value == "-":
        words = ["minus", *words]
    for length in range(len(words), 0, -1):
        value = words_to_number(words[:length])
        if value is None:
            continue
        rest = words[length:]
        latex = " ".join(words[:length])
        if tuple(word.lower() for word in rest) in _PERCENT or rest == ["%"]:
            return Value(latex, number(value), percent=True)
        unit = parse_unit(rest) if rest else ()
        return None if unit is None else Value(latex, number(value), unit)
    return None


def mixed_words(tokens: list[Token]) -> Answer | None:
    """ "5 and a half", "2 and three quarters": digits and a fraction in words, joined by "and"."""
    places = [index for index, token in enumerate(tokens) if token.kind == "word" and token.value.lower() == "and"]
    if len(places) != 1 or not 0 < places[0] < len(tokens) - 1:
        return None
    whole, words = tokens[: places[0]], tokens[places[0] + 1 :]
    for length in range(len(words), 0, -1):
        last = words[length - 1]
        if last.kind != "word" or last.value.lower() not in FRACTION_WORDS:
            continue
        part = words_to_number([token.value for token in words[:length]])
        node = _integer(whole)
        unit = parse_unit([token.value for token in words[length:]]) if words[length:] else ()
        if part is None or not 0 < part < 1 or node is None or unit is None:
            return None
        return Value(render(tokens[: places[0] + 1 + length]), Node("add", (node, number(part))), unit)
    return None


def _integer(tokens: Sequence[Token]) -> Node | None:
    if len(tokens) == 1 and tokens[0].kind == "num" and tokens[0].value.isdigit():
        return number(int(tokens[0].value))
    return None


# -- quantities --------------------------------------------------------------------------------------------------------


def parse_value(tokens: list[Token]) -> Answer:
    """A number in a base, a value, or what remains: words."""
    based = _based(tokens)
    if based is not None:
        return based
    tokens, modulus = split_modulus(tokens)
    quantity = _quantity(tokens)
    if isinstance(quantity, Value):
        return replace(quantity, modulus=modulus)
    return Text(text_key(tokens))


def compound_quantity(tokens: list[Token]) -> Answer | None:
    """ "2 hours and 42 minutes", "5 ft 3 in": one quantity in several units of one dimension, each smaller than the one
    before; in the smallest.
    """
    pieces = [chunk for _, piece in split_top(tokens, {"and", ","}) for chunk in _chunks(piece)]
    if not 2 <= len(pieces) <= 4 or not all(len(piece) >= 2 and piece[0].kind in {"num", "word"} for piece in pieces):
        return None
    parts = [_quantity(piece) for piece in pieces]
    if not all(isinstance(part, Value) and part.unit and part.node is not None for part in parts):
        return None
    smallest = parts[-1].unit  # type: ignore[union-attr]
    terms: list[Node] = []
    above: Fraction | None = None
    for part in parts:
        assert isinstance(part, Value)
        assert part.node is not None
        factor, value = conversion(part.unit, smallest), rational_value(part.node)
        if factor is None or value is None or value < 0 or (above is not None and not factor * value < above):
            return None
        above = factor
        terms.append(number(value * factor))
    return Value(render(tokens), Node("add", tuple(terms)), smallest)


def _chunks(tokens: list[Token]) -> list[list[Token]]:
    """ "2 hours 42 minutes" as its two parts: a number behind a word begins a new one."""
    chunks: list[list[Token]] = [[]]
    for token in tokens:
        previous = chunks[-1][-1] if chunks[-1] else None
        if token.kind == "num" and previous is not None and (previous.kind == "word" or previous.value == "."):
            chunks.append([])
        chunks[-1].append(token)
    return [chunk for chunk in chunks if chunk]


def loose_quantity(tokens: list[Token]) -> Value | None:
    """ "5 m", "9.8 m/s^2": plain letters behind a number and a blank that *may* be units. They count only where the
    other side has a unit too; otherwise ``5 m`` is five times m.
    """
    start = next((i for i, token in enumerate(tokens) if token.kind == "sym"), 0)
    if not start or not tokens[start].space or not is_letter_symbol(tokens[start].value):
        return None
    unit = parse_unit(_pieces(tokens[start:]) or ["?"], known_only=True)
    try:
        node = parse_expression(tokens[:start])
    except AnswerError:
        return None
    return Value(render(tokens), node, unit, loose=True) if unit else None


def _quantity(tokens: list[Token]) -> Value | None:
    """The value of tokens with what stands around it, None if a part of them is neither value nor unit."""
    if len(tokens) > 1 and tokens[0].kind == "word" and tokens[0].value.lower() in _APPROXIMATELY:
        tokens = tokens[1:]
    tokens, currency = _strip_currency(tokens)
    body, tail = _split_tail(tokens)
    body, tail, scale, power = _multipliers(body, tail)
    percent, tail = _strip_percent(tail)
    if body and body[-1].value == "%" and not tail:
        percent, body = True, body[:-1]
    body, degrees = _strip_degrees(body, tail)
    if not body:
        return None
    pieces = [*degrees, *(_pieces(tail) or (["?"] if tail else []))]
    unit = parse_unit(pieces) if pieces else ()
    if unit is None or (percent and unit):
        return None
    if currency:
        unit = tuple(sorted({*unit, (currency, 1)}))
    return _value(body, unit, percent, scale, power)


def _value(body: list[Token], unit: Unit, percent: bool, scale: Fraction, power: int) -> Value | None:
    latex = render(body)
    try:
        node = parse_expression(body)
    except AnswerError as error:
        if scale != 1 or power != 1 or any(token.kind == "word" for token in body):
            return None
        return Value(latex, None, unit, percent, error=str(error))
    if scale != 1:
        node = Node("mul", (node, number(scale)))
    if power != 1:
        node = Node("pow", (node, number(power)))
    return Value(latex, node, unit, percent)


def _split_tail(tokens: list[Token]) -> tuple[list[Token], list[Token]]:
    """The tokens before the first word (or fraction of words) outside of brackets, and the rest."""
    depths = _depths(tokens)
    for index in range(1, len(tokens)):
        if depths[index]:
            continue
        if tokens[index].kind == "word" or _is_worded_fraction(tokens[index : index + 4]):
            end = index - 1 if tokens[index - 1].value == "*" else index
            return tokens[:end], tokens[index:]
        if tokens[index].value == "cent" and tokens[index].kind == "cmd":
            return tokens[:index], tokens[index:]
    return tokens, []


def _is_worded_fraction(tokens: list[Token]) -> bool:
    values = [token.kind == "word" for token in tokens if token.value not in {"{", "("}]
    return len(values) > 1 and tokens[0].value == "frac" and tokens[0].kind == "cmd" and values[1]


def _multipliers(body: list[Token], tail: list[Token]) -> tuple[list[Token], list[Token], Fraction, int]:
    """Words behind a number that change it: "5 million", "5 tenths", "5 squared"."""
    scale, power = Fraction(1), 1
    while tail and tail[0].kind == "word":
        word = tail[0].value.lower()
        if word in SCALES:
            scale *= SCALES[word]
        elif word in FRACTION_WORDS and (word.endswith("s") or [t.value for t in body] == ["1"]):
            scale *= FRACTION_WORDS[word]
            tail = tail[1:] if len(tail) > 1 and tail[1].value.lower() == "of" else tail
        elif word in AFTER and len(tail) == 1:
            power = AFTER[word]
        else:
            break
        tail = tail[1:]
    return body, tail, scale, power


def _strip_percent(tail: list[Token]) -> tuple[bool, list[Token]]:
    words = tuple(token.value.lower() for token in tail if token.value != ".")
    return (True, []) if words in _PERCENT else (False, tail)


def _strip_degrees(body: list[Token], tail: list[Token]) -> tuple[list[Token], list[str]]:
    """Degree signs outside of trigonometric functions are a unit; ``^\\circ C`` is another one."""
    signs = [index for index, token in enumerate(body) if token.value == "deg" and token.kind == "cmd"]
    if not signs or any(token.kind == "cmd" and token.value in _TRIGONOMETRIC for token in body):
        return body, []
    if len(body) - signs[0] == 2 and body[-1].value in {"C", "F"} and not tail:
        return body[: signs[0]], ["deg", body[-1].value]
    rest = [token for index, token in enumerate(body) if index not in signs]
    names_degrees = tail and tail[0].value.lower() in {"deg", "degree", "degrees"}
    return rest, [] if names_degrees else ["deg"]


def _pieces(tokens: Sequence[Token]) -> list[str] | None:
    """The tokens behind a number as :func:`~negpo.rewards.units.parse_unit` wants them, None if they cannot be one."""
    pieces: list[str] = []
    for token in tokens:
        if token.kind == "cmd" and token.value not in _UNIT_COMMANDS:
            return None
        piece = _UNIT_COMMANDS[token.value] if token.kind == "cmd" else token.value
        if pieces and pieces[-1] == "μ" and token.kind in {"sym", "word"}:
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces


def _strip_currency(tokens: list[Token]) -> tuple[list[Token], str]:
    """The tokens without a currency before or behind the number, and its name."""
    position = 1 if tokens and tokens[0].value == "-" else 0
    found = ""
    while position < len(tokens) - 1:
        token = tokens[position]
        name = _CURRENCIES.get(token.value) if token.kind == "cmd" else _CURRENCY_WORDS.get(token.value.lower())
        if name is None and token.value == "U" and tokens[position + 1].value == "S":  # US\$
            tokens = tokens[:position] + tokens[position + 2 :]
            continue
        if name is None or (token.kind == "op"):
            break
        found = name
        tokens = tokens[:position] + tokens[position + 1 :]
        if position < len(tokens) and tokens[position].value == "." and token.kind == "word":
            tokens = tokens[:position] + tokens[position + 1 :]
    if not found and len(tokens) > 1 and tokens[-1].kind == "cmd" and tokens[-1].value in _CURRENCIES:
        return tokens[:-1], _CURRENCIES[tokens[-1].value]
    return tokens, found


def _depths(tokens: Sequence[Token]) -> list[int]:
    depth, result = 0, []
    for token in tokens:
        depth += token.value in {"(", "[", "{", r"\{"}
        result.append(depth)
        depth -= token.value in {")", "]", "}", r"\}"}
    return result


# -- bases and moduli --------------------------------------------------------------------------------------------------


def _based(tokens: list[Token]) -> Answer | None:
    """Digits with a base: ``152A_{11}``, ``(2516)_8``, "2516 base 8", "2516 (base eight)", ``1011_{\\text{two}}``."""
    place = next((i for i, token in enumerate(tokens) if token.value == "_" or _is_base(token)), None)
    if place is None or not 0 < place < len(tokens) - 1:
        return None
    end = place
    while end and (tokens[end - 1].value in {"(", "-"} or tokens[end - 1].value == "in"):
        end -= 1
    digits = "".join(token.value for token in tokens[:end])
    named = [t for t in tokens[place + 1 :] if t.value not in {"{", "}", "(", ")", "-", "_"} and not _is_base(t)]
    base = _base_number(named)
    if digits.startswith("(") and digits.endswith(")"):
        digits = digits[1:-1]
    if base is None or not re.fullmatch(r"-?[0-9][0-9A-Z]*(?:\.[0-9A-Z]+)?", digits):
        return None
    return Based(digits, base)


def _is_base(token: Token) -> bool:
    return token.kind == "word" and token.value.lower() == "base"


def _base_number(tokens: Sequence[Token]) -> int | None:
    if len(tokens) == 1 and tokens[0].kind == "num" and tokens[0].value.isdigit():
        value = int(tokens[0].value[:4])
    else:
        words = words_to_number([token.value for token in tokens if token.kind == "word"]) if tokens else None
        if words is None or not all(token.kind == "word" for token in tokens):
            return None
        value = int(words)
    return value if 2 <= value <= 36 else None


def split_modulus(tokens: list[Token]) -> tuple[list[Token], str]:
    r"""``3 \pmod{7}`` as its value and its modulus, "" if it has none."""
    for index, token in enumerate(tokens):
        if token.value == "pmod" and token.kind == "cmd":
            return tokens[:index], render(tokens[index + 1 :])
    return tokens, ""
