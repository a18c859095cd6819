r"""From the LaTeX people and models write to a flat list of tokens.

:func:`tokenize` cuts a cleaned text (:func:`negpo.rewards.cleaning.clean`) into :class:`Token`. It is linear in the
length of the text and never fails on strange input; :func:`check_brackets` does. A word of text mode is never an
operator: ``\text{ in }``, ``\text{cup}`` and ``\text{pm}`` stay words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from negpo.rewards.units import is_letter_symbol, is_unit_text
from negpo.rewards.vocabulary import (
    CONNECTIVES,
    FUNCTION_WORDS,
    FUNCTIONS,
    INVISIBLE,
    RENAMED,
    SHORT_WORDS,
    TEXT_MODE,
    TRANSPARENT,
    VECTOR_STYLES,
)


class AnswerError(ValueError):
    """A text cannot be read as an answer. The message says why."""


class Token(NamedTuple):
    """``kind`` is ``num``, ``sym`` (one letter), ``word`` (from text mode or a bare word), ``cmd`` (a LaTeX command
    without its backslash) or ``op`` (one character, a bracket, or ``\\\\`` as ``"row"``). ``space`` tells whether
    blanks stood before.
    """

    kind: str
    value: str
    space: bool = False


# What the tokenizer knows besides commands: thousands separators need at least one full group of three digits.
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<num>\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)
      | \\(?P<cmd>[A-Za-z]+)\*?
      | \\(?P<escaped>[{}])
      | (?P<row>\ue000)
      | (?P<word>(?:[^\W\d_]|[\u0300-\u036f\u0900-\u0963\u0e31-\u0e4e])+)
      | (?P<op>.)""",
    re.VERBOSE | re.DOTALL,
)
_SIGNS = {"*", "/", "<", ">", "|", "[", "]", "(", ")", ":", r"\{", r"\}"}
KNOWN_OPERATORS = FUNCTIONS | {"sqrt", "lfloor", "rfloor", "infty", "pi", "emptyset"}
_BASIS = re.compile(
    r"\s*\{\s*(?:\\(?:hat|vec|mathbf|bm|boldsymbol|widehat)\s*)?(?:\{\s*\\?(?P<deep>[ijk])(?:math)?\s*\}|\\?(?P<braced>[ijk])(?:math)?)"
    r"\s*\}|\s+\\?(?P<bare>[ijk])(?:math)?(?![A-Za-z])"
)
_GROUPED_BY_BLANK = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])")
_WORD_OPERATORS = {"and", "or"}
_OPENING = {"(", "[", r"\{", "{", "lfloor", "lceil", "langle"}
_CLOSING = {")", "]", r"\}", "}", "rfloor", "rceil", "rangle"}
_STRICT_PAIRS = {"}": "{", r"\}": r"\{", "rfloor": "lfloor", "rceil": "lceil", "rangle": "langle"}


def tokenize(text: str, *, group_thousands: bool = True) -> list[Token]:
    r"""Tokens of a cleaned text.

    ``group_thousands`` reads ``1,000`` and ``1 000`` as one number; without it a comma always separates.
    """
    if group_thousands:
        text = _GROUPED_BY_BLANK.sub(lambda m: m[0].replace(" ", ","), text)
    tokens: list[Token] = []
    _scan(text, group_thousands, tokens, in_text=False)
    return tokens


def _scan(text: str, group: bool, out: list[Token], *, in_text: bool) -> None:
    position, space = 0, False
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None  # the last alternative takes any character
        kind, value = match.lastgroup or "op", match.group(match.lastgroup or 0)
        position = match.end()
        if kind == "space":
            space = True
            continue
        if kind == "cmd":
            position = _scan_command(text, position, value, space, group, out)
        elif kind == "num":
            out.extend(_numbers(value, space, group))
        elif kind == "word":
            out.extend(_letters(value, space, in_text, text[position : position + 1] == "_"))
        elif kind == "escaped":
            out.append(Token("op", "\\" + value, space))
        else:
            out.append(Token("op", "row" if kind == "row" else value, space))
        space = False


def _numbers(value: str, space: bool, group: bool) -> list[Token]:
    if "," not in value:
        return [Token("num", value, space)]
    if group:
        return [Token("num", value.replace(",", ""), space)]
    pieces = [Token("num", piece) for piece in value.split(",")]
    separated = [pieces[0]._replace(space=space)]
    for piece in pieces[1:]:
        separated += [Token("op", ","), piece]
    return separated


def _letters(value: str, space: bool, in_text: bool, subscripted: bool) -> list[Token]:
    """A run of letters: a word in text mode, in another script or of four letters and more, a function name, else
    single symbols.
    """
    connective = CONNECTIVES.get(value.lower() if in_text else value)
    if connective and (in_text or not value.isascii()):
        return [Token("word", connective, space)]
    if in_text or not value.isascii():
        return [Token("word", value, space)]
    if value in FUNCTION_WORDS:
        return [Token("cmd", value, space)]
    if value.lower() in {"infinity", "inf"}:
        return [Token("cmd", "infty", space)]
    if len(value) > 1 and not subscripted and (len(value) >= 4 or value.lower() in SHORT_WORDS):
        return [Token("word", value, space)]
    return [Token("sym", letter, space and index == 0) for index, letter in enumerate(value)]


def _scan_command(text: str, position: int, name: str, space: bool, group: bool, out: list[Token]) -> int:
    """Handles one command whose name ends at ``position``; returns where scanning goes on."""
    name = RENAMED.get(name, name)
    if name in INVISIBLE:
        return position
    if name in VECTOR_STYLES and (match := _BASIS.match(text, position)):
        out.append(Token("cmd", f"basis:{match['deep'] or match['braced'] or match['bare']}", space))
        return match.end()
    if name in TEXT_MODE or name in TRANSPARENT:
        inner, end = braced(text, position)
        if inner is None:
            return position
        _scan_group(name, inner, space, group, out)
        return end
    if name in {"begin", "end", "mathbb"}:
        inner, end = braced(text, position)
        out.append(Token("cmd", f"{name}:{(inner or '').strip('* ')}", space))
        return end
    if name in _SIGNS:
        out.append(Token("op", name, space))
    else:
        out.append(Token("cmd", name, space))
    return position


def _scan_group(name: str, inner: str, space: bool, group: bool, out: list[Token]) -> None:
    """The argument of a command that sets it in text mode or in another font."""
    plain = inner.strip()
    if name == "operatorname" and re.fullmatch(r"[A-Za-z]+", plain):
        out.append(Token("cmd", plain if plain in KNOWN_OPERATORS else f"fn:{plain}", space))
    elif name == "mathrm" and plain in FUNCTION_WORDS:
        out.append(Token("cmd", plain, space))
    elif _is_wordy(name, plain, out):
        _scan(inner, group, out, in_text=True)
    elif name in TEXT_MODE and not re.search(r"[^\W\d_]", re.sub(r"\\[A-Za-z]+", "", inner)):
        _scan(inner, group, out, in_text=False)  # \text{-}5, \text{\$}5, 5\text{}
    else:
        # Braces keep a group together: \mathbf{x+1}^2.
        out.append(Token("op", "{", space))
        _scan(inner, group, out, in_text=False)
        out.append(Token("op", "}"))


def _is_wordy(name: str, inner: str, out: list[Token]) -> bool:
    """Whether letters in there are words: always in text mode, and upright ones where they form a unit."""
    if name in TEXT_MODE:
        return "\\" not in inner and bool(re.search(r"[^\W\d_]", inner))
    if name not in {"mathrm", "mathsf", "mathit"}:
        return False
    if re.fullmatch(r"[^\W\d_]{2,}", inner) and name == "mathrm":
        return True
    if len(inner) == 1:
        return is_letter_symbol(inner) and _behind_number(out)
    return is_unit_text(inner)


def _behind_number(out: list[Token]) -> bool:
    """Whether the last token ends a number, or a unit that goes on."""
    last = out[-1] if out else Token("op", "")
    if last.value in {"/", "*"} and len(out) > 1:
        return out[-2].kind == "word"
    return last.kind in {"num", "word"} or last.value in {")", "}", "pi"}


def braced(text: str, position: int) -> tuple[str | None, int]:
    """Content of the brace group that starts at ``position`` (blanks skipped) and the index behind it; (None,
    position) if there is no group or it is never closed.
    """
    start = position
    while start < len(text) and text[start].isspace():
        start += 1
    if text[start : start + 1] != "{":
        return None, position
    depth, index = 0, start
    while index < len(text):
        character = text[index]
        if character == "\\":
            index += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : index], index + 1
        index += 1
    return None, position


def is_open(token: Token) -> bool:
    return token.kind != "word" and (token.value in _OPENING or token.value.startswith("begin:"))


def is_close(token: Token) -> bool:
    return token.kind != "word" and (token.value in _CLOSING or token.value.startswith("end:"))


def check_brackets(tokens: Sequence[Token]) -> list[int]:
    """Partner index of every bracket, -1 elsewhere. Round and square may close each other (half-open intervals).

    Raises:
        AnswerError: unbalanced brackets.
    """
    partner, stack = [-1] * len(tokens), []
    for index, token in enumerate(tokens):
        if is_open(token):
            stack.append(index)
        elif is_close(token):
            if not stack:
                raise AnswerError(f"unbalanced '{token.value}'")
            start = stack.pop()
            opener = tokens[start].value
            wanted = _STRICT_PAIRS.get(token.value)
            if (wanted and opener != wanted) or (
                not wanted and opener not in {"(", "["} and not opener.startswith("begin:")
            ):
                raise AnswerError(f"'{opener}' closed by '{token.value}'")
            partner[start], partner[index] = index, start
    if stack:
        raise AnswerError(f"'{tokens[stack[-1]].value}' is never closed")
    return partner


def separates(token: Token, separators: set[str]) -> bool:
    """Whether a token is one of these operators; of the words only "and" and "or" can be."""
    if token.kind == "word":
        return token.value.lower() in _WORD_OPERATORS & separators
    return token.value in separators


def split_top(tokens: Sequence[Token], separators: set[str]) -> list[tuple[Token | None, list[Token]]]:
    """Pieces between separators outside of all brackets, each with the separator before it (None for the first)."""
    pieces: list[tuple[Token | None, list[Token]]] = [(None, [])]
    depth = 0
    for token in tokens:
        depth += is_open(token) - is_close(token)
        if depth == 0 and separates(token, separators) and not is_close(token):
            pieces.append((token, []))
        else:
            pieces[-1][1].append(token)
    return pieces


def render(tokens: Sequence[Token]) -> str:
    """LaTeX text of tokens, for messages and for the symbolic engine."""
    parts: list[str] = []
    for token in tokens:
        if token.kind == "cmd":
            name, _, argument = token.value.partition(":")
            parts.append(f"\\{name}{{{argument}}}" if argument else f"\\{token.value} ")
        elif token.kind == "word":
            parts.append(f"\\text{{ {token.value} }}")
        elif token.value == "row":
            parts.append(r"\\")
        elif token.value == "*":
            parts.append(r" \cdot ")
        else:
            parts.append((" " if token.space else "") + token.value)
    return "".join(parts).strip()
