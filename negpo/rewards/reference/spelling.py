r"""Spelling repairs that several reference normalisers share: ``\frac12``, ``\sqrt3``, ``1/2``, ``x=5``."""

from __future__ import annotations

import re


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` (or ``\fbox{...}``) with balanced braces, None if there is none."""
    start = max(text.rfind("\\boxed"), -1)
    command = "\\boxed"
    if start < 0:
        start, command = text.rfind("\\fbox"), "\\fbox"
    if start < 0 or text[start + len(command) : start + len(command) + 1] != "{":
        return None
    return balanced(text, start + len(command))[0]


def balanced(text: str, start: int) -> tuple[str | None, int]:
    """Content of the brace group opening at ``start`` and the index behind it; (None, start) if it never closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return text[start + 1 : index], index + 1
    return None, start


def brace_fractions(text: str) -> str:
    r"""``\frac12`` as ``\frac{1}{2}`` and ``\frac1{72}`` as ``\frac{1}{72}``; unchanged if an argument is missing."""
    pieces = text.split("\\frac")
    result = pieces[0]
    for piece in pieces[1:]:
        if piece.startswith("{"):
            result += "\\frac" + piece
        elif len(piece) < 2:
            return text
        elif piece[1] == "{":
            result += f"\\frac{{{piece[0]}}}{piece[1:]}"
        else:
            result += f"\\frac{{{piece[0]}}}{{{piece[1]}}}{piece[2:]}"
    return result


def brace_roots(text: str, *, whole_word: bool) -> str:
    r"""``\sqrt3`` as ``\sqrt{3}``: the next character, or with ``whole_word`` the next word."""
    return re.sub(r"\\sqrt(\w+)" if whole_word else r"\\sqrt([^{])", r"\\sqrt{\1}", text)


def slash_to_fraction(text: str, *, roots: bool) -> str:
    r"""``3/7`` as ``\frac{3}{7}`` where both sides are whole numbers (with ``roots`` also contain a root)."""
    sides = text.split("/")
    if len(sides) != 2:
        return text

    def is_whole(side: str) -> bool:
        return bool(re.fullmatch(r"[+-]?\d+", side.strip())) or (roots and "sqrt" in side)

    plain = roots or text == "/".join(str(int(side)) if is_whole(side) else side for side in sides)
    return f"\\frac{{{sides[0]}}}{{{sides[1]}}}" if all(map(is_whole, sides)) and plain else text


def drop_short_name(text: str) -> str:
    """``x=5`` as ``5`` for names of at most two characters."""
    sides = text.split("=")
    return sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text
