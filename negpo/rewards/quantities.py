"""Values among the typed answers: numbers and expressions with units, percent signs, currencies, bases, words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from negpo.rewards.answers import Answer, Based, Text, Value
from negpo.rewards.expression import Node, number, parse_expression
from negpo.rewards.latex import AnswerError, Token, render
from negpo.rewards.units import SCALES, Unit, parse_unit, words_to_number

_PUNCTUATION = set(".,;{}()!\"'")


def text_key(tokens: Sequence[Token]) -> str:
    """Letters, digits and signs of a text in lower case, without a leading article."""
    words = [token for token in tokens if token.value not in _PUNCTUATION]
    if len(words) > 1 and words[0].kind == "word" and words[0].value.lower() in {"the", "a", "an"}:
        words = words[1:]
    return "".join(token.value.lower() for token in words)


def number_words(tokens: list[Token]) -> Answer | None:
    """A number written in words, perhaps with a unit, None if the tokens are anything else."""
    words = [token.value for token in tokens if token.value != "-"]
    if not all(token.kind in {"word", "cmd"} or token.value == "-" for token in tokens):
        return None
    for length in range(len(words), 0, -1):
        value = words_to_number(words[:length])
        if value is None:
            continue
        unit = parse_unit(" ".join(words[length:]))
        return None if unit is None else Value(" ".join(words[:length]), number(value), unit)
    return None


def parse_value(tokens: list[Token]) -> Answer:
    """A number in a base, a value, or what remains: words."""
    based = _based(tokens)
    if based is not None:
        return based
    tokens, modulus = split_modulus(tokens)
    body, unit, percent, scale = _strip_unit(tokens)
    if body is None:
        return Text(text_key(tokens))
    latex = render(body)
    try:
        node = parse_expression(body)
    except AnswerError as error:
        if any(token.kind == "word" for token in tokens):
            return Text(text_key(tokens))
        if scale != 1:
            return Text(text_key(tokens))
        return Value(latex, None, unit, percent, modulus=modulus, error=str(error))
    return Value(latex, node if scale == 1 else Node("mul", (node, number(scale))), unit, percent, modulus=modulus)


def _strip_unit(tokens: list[Token]) -> tuple[list[Token] | None, Unit, bool, int]:
    """The value tokens without their unit, the unit, whether a percent sign was there, and a factor (million)."""
    if tokens and tokens[0].value in {"approximately", "about", "roughly"} and len(tokens) > 1:
        tokens = tokens[1:]
    tokens, currency = _strip_currency(tokens)
    depths = _depths(tokens)
    start = next((i for i, token in enumerate(tokens) if token.kind == "word" and not depths[i] and i), len(tokens))
    if start and tokens[start - 1].value == "*" and start < len(tokens):
        body, tail = tokens[: start - 1], tokens[start:]
    else:
        body, tail = tokens[:start], tokens[start:]
    scale = 1
    while tail and tail[0].value.lower() in SCALES:
        scale, tail = scale * SCALES[tail[0].value.lower()], tail[1:]
    text = re.sub(r"\s*([{}^])\s*", r"\1", " ".join(token.value for token in tail))
    percent = False
    if text.lower() in {"percent", "per cent"}:
        percent, text = True, ""
    if body and body[-1].value == "%" and not tail:
        percent, body = True, body[:-1]
    if any(token.value == "deg" for token in body) and not _has_function(body):
        body, text = [token for token in body if token.value != "deg"], text or "deg"
    parsed = parse_unit(text) if text else ()
    if parsed is None or not body:
        return None, (), False, 1
    if currency:
        parsed = tuple(sorted({*parsed, (currency, 1)}))
    return body, parsed, percent, scale


def _strip_currency(tokens: list[Token]) -> tuple[list[Token], str]:
    for position in (0, 1):
        if (
            position < len(tokens)
            and tokens[position].value in {"dollar", "euro", "pounds"}
            and tokens[position].kind == "cmd"
        ):
            if position == 1 and tokens[0].value != "-":
                continue
            return tokens[:position] + tokens[position + 1 :], tokens[position].value
    if tokens and tokens[-1].value in {"dollar", "euro"} and tokens[-1].kind == "cmd":
        return tokens[:-1], tokens[-1].value
    return tokens, ""


def _depths(tokens: Sequence[Token]) -> list[int]:
    depth, result = 0, []
    for token in tokens:
        depth += token.value in {"(", "[", "{", r"\{"}
        result.append(depth)
        depth -= token.value in {")", "]", "}", r"\}"}
    return result


def _has_function(tokens: Sequence[Token]) -> bool:
    return any(token.kind == "cmd" and token.value in {"sin", "cos", "tan", "cot", "sec", "csc"} for token in tokens)


def _based(tokens: list[Token]) -> Answer | None:
    """Digits with a base subscript, ``152A_{11}``, or followed by the words "base 11"."""
    text = "".join(token.value for token in tokens)
    match = re.fullmatch(r"\(?(?P<digits>-?[0-9][0-9A-Z]*(?:\.[0-9A-Z]+)?)\)?(?:_\{?|base)(?P<base>\d{1,2})\}?", text)
    if match is None or not 2 <= int(match["base"]) <= 36:
        return None
    return Based(match["digits"], int(match["base"]))


def split_modulus(tokens: list[Token]) -> tuple[list[Token], str]:
    r"""``3 \pmod{7}`` as its value and its modulus, "" if it has none."""
    for index, token in enumerate(tokens):
        if token.value == "pmod":
            return tokens[:index], render(tokens[index + 1 :])
    return tokens, ""
