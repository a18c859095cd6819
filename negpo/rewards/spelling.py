"""Rewriting token lists where a sign is spelled in another way: quotes, ``]3,4]``, a capital U for a union, words for
operators. Runs before any structure is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from negpo.rewards.tokens import AnswerError, Token, check_brackets, is_close, is_open

_QUOTES = {'"', "'", "`"}
_SETS = {"cup", "cap", "setminus"}
_IN = Token("cmd", "in")


def respell(tokens: list[Token]) -> list[Token]:
    """The tokens with one spelling for the same structure; never drops a value."""
    tokens = _unquoted(tokens)
    tokens = _word_operators(tokens)
    tokens = _opened_cases(tokens)
    return _outward_brackets(tokens)


def _unquoted(tokens: list[Token]) -> list[Token]:
    while len(tokens) > 2 and tokens[0].value in _QUOTES and tokens[-1].value in _QUOTES:
        if any(token.value in _QUOTES for token in tokens[1:-1]):
            break
        tokens = tokens[1:-1]
    return tokens


def _word_operators(tokens: list[Token]) -> list[Token]:
    """``x in [0,1]``, ``(0,9) U (9,36)``, "x equals 5"."""
    result = list(tokens)
    for index in range(1, len(tokens) - 1):
        token, before, after = tokens[index], tokens[index - 1], tokens[index + 1]
        opens = is_open(after) or after.value.startswith("mathbb:")
        if token.kind == "word" and token.value == "in" and index == 1 and before.kind == "sym" and opens:
            result[index] = _IN
        elif token.kind == "sym" and token.value == "U" and is_close(before) and is_open(after):
            result[index] = Token("cmd", "cup")
        elif token.kind == "word" and token.value.lower() == "equals":
            result[index] = Token("op", "=")
    return result


def _opened_cases(tokens: list[Token]) -> list[Token]:
    """``\\left\\{\\begin{array}...\\end{array}\\right.``: a brace that only opens marks a system."""
    for index, token in enumerate(tokens[:-1]):
        if token.value == r"\{" and tokens[index + 1].value.startswith("begin:"):
            if any(other.value == r"\}" for other in tokens[index:]):
                return tokens
            name = tokens[index + 1].value.partition(":")[2]
            rest = [
                other._replace(value=other.value.replace(name, "cases")) if other.value.endswith(":" + name) else other
                for other in tokens[index + 1 :]
            ]
            if name == "array" and len(rest) > 1 and rest[1].value == "{":  # column specification
                close = next((i for i, other in enumerate(rest) if other.value == "}"), 0)
                rest = [rest[0], *rest[close + 1 :]]
            return tokens[:index] + rest
    return tokens


def _outward_brackets(tokens: list[Token]) -> list[Token]:
    """``]3,4]`` and ``[0,1[`` in the usual brackets; only where the brackets do not match as they stand."""
    if not any(token.value in {"[", "]"} for token in tokens) or _matches(tokens):
        return tokens
    result: list[Token] = []
    start = 0
    for index in [*(i for i, t in enumerate(tokens) if t.kind == "cmd" and t.value in _SETS | {"in"}), len(tokens)]:
        result += _outward_interval(tokens[start:index])
        result += tokens[index : index + 1]
        start = index + 1
    return result if _matches(result) else tokens


def _outward_interval(piece: list[Token]) -> list[Token]:
    if len(piece) < 5 or piece[0].value not in {"[", "]"} or piece[-1].value not in {"[", "]"}:
        return piece
    left = Token("op", "[" if piece[0].value == "[" else "(")
    right = Token("op", "]" if piece[-1].value == "]" else ")")
    return [left, *piece[1:-1], right]


def _matches(tokens: Sequence[Token]) -> bool:
    try:
        check_brackets(tokens)
    except AnswerError:
        return False
    return True
