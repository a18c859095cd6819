r"""From an answer text to a typed answer.

:func:`parse_answer` finds structure first (lists, relations, brackets, matrices) and values last, so that a bracket
or a comma is never lost. A value the small parser cannot read keeps its LaTeX and ``node=None``; math-verify may
still read it in a worker. A text that is ambiguous (``1,234``) has two readings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from negpo.rewards.answers import (
    Answer,
    Bracketed,
    Choice,
    Collection,
    Combined,
    NamedSet,
    Ratio,
    Reading,
    Relation,
    Text,
    Value,
    is_name,
    readable,
)
from negpo.rewards.cleaning import clean
from negpo.rewards.expression import Node
from negpo.rewards.matrices import environment, matrix_expression
from negpo.rewards.quantities import (
    compound_quantity,
    loose_quantity,
    mixed_words,
    number_words,
    parse_value,
    split_modulus,
    text_key,
)
from negpo.rewards.spelling import respell
from negpo.rewards.tokens import (
    AnswerError,
    Token,
    check_brackets,
    is_close,
    is_open,
    render,
    split_top,
    tokenize,
)

MAX_ANSWER_CHARS = 8_000
MAX_ANSWER_TOKENS = 2_500  # after redundant brackets are gone

_RELATIONS = {"=", "<", ">", "le", "ge", "ne", "equiv"}
_LISTS = {",", ";", "or", "and"}
_SETS = {"cup": "cup", "cap": "cap", "setminus": "setminus"}
_REALS_TEXT = {"allrealnumbers", "allreals", "allrealvalues", "realnumbers", "anyrealnumber", "everyrealnumber"}
_EMPTY_TEXT = {"emptyset", "theemptyset", "nosolution", "nosolutions", "norealsolution", "norealsolutions"}
_INFINITE = {"infinity", "positiveinfinity", "plusinfinity", "+infinity", "infinite"}
_MINUS_INFINITE = {"-infinity", "negativeinfinity", "minusinfinity"}
_SAME_TEXT = {"dne": "doesnotexist"}
_LABELS = {"option", "choice", "answer", "optionletter"}


def parse_answer(text: str, kind: str | None = None) -> list[Reading]:
    """All readings of an answer text, the likeliest first.

    Raises:
        AnswerError: nothing there, unbalanced brackets, or beyond the size limit.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise AnswerError(f"an answer of {len(text)} characters, limit {MAX_ANSWER_CHARS}")
    cleaned = clean(text)
    readings: list[Reading] = []
    loose: Answer | None = None
    grouped: list[Token] = []
    for group in (True, False):
        tokens = tokenize(cleaned, group_thousands=group)
        if group:
            grouped = tokens
        elif tokens == grouped or not _plain_list(tokens):
            continue
        tokens = trim(respell(tokens))
        if not tokens:
            raise AnswerError("the answer is empty")
        if len(tokens) > MAX_ANSWER_TOKENS:
            raise AnswerError(f"an answer of {len(tokens)} tokens, limit {MAX_ANSWER_TOKENS}")
        key = "".join(f"{token.kind[0]}{token.value} " for token in tokens)
        answer = _with_kind(tokens, kind)
        if group or readable(answer):
            readings.append(Reading(answer, key, _text_key(tokens)))
        if group and kind in {None, "unit"}:
            loose = loose_quantity(tokens)
    # (1,234) is a pair unless an item would start with a zero.
    if len(readings) == 2 and isinstance(readings[1].answer, Bracketed):
        readings.pop(0)
    if loose is not None:
        readings.append(Reading(loose, readings[0].key + "unit", readings[0].text_key))
    return readings


def _with_kind(tokens: list[Token], kind: str | None) -> Answer:
    if kind == "text":
        return Text(_text_key(tokens))
    if kind == "choice":
        return _choice(tokens) or Text(_text_key(tokens))
    answer = parse_tokens(tokens)
    if kind == "tuple" and isinstance(answer, Collection):
        return Bracketed("(", ")", answer.items)
    if kind == "set" and isinstance(answer, Value):
        return Collection((answer,))
    return answer


def _plain_list(tokens: Sequence[Token]) -> bool:
    """No number starts with a superfluous zero, so reading every comma as a separator makes sense."""
    return not any(token.kind == "num" and re.match(r"0\d", token.value) for token in tokens)


def trim(tokens: Sequence[Token]) -> list[Token]:
    """Drops closing punctuation and every pair of brackets that encloses everything without a comma inside.

    Linear in the number of tokens, so two thousand nested parentheses cost nothing.

    Raises:
        AnswerError: unbalanced brackets.
    """
    low, high = 0, len(tokens)
    partner: list[int] | None = None
    offset = layers = 0
    while low < high:
        first, last = tokens[low], tokens[high - 1]
        if last.kind == "op" and last.value in {".", ",", ";", ":", "row", "&"}:
            high -= 1
        elif first.kind == "op" and first.value in {":", ".", ","} and not _starts_decimal(tokens, low):
            low += 1
        elif _label_length(tokens[low : min(high, low + 4)]):
            break
        else:
            if partner is None:
                partner, offset = check_brackets(tokens[low:high]), low
                commas = _comma_depths(tokens[low:high])
            removable = first.value == "{" or (first.value == "(" and last.value == ")" and layers + 1 not in commas)
            if partner[low - offset] != high - 1 - offset or not removable:
                break
            low, high, layers = low + 1, high - 1, layers + 1
    return list(tokens[low:high])


def _comma_depths(tokens: Sequence[Token]) -> set[int]:
    """Bracket depths at which commas or semicolons stand."""
    depth, found = 0, set()
    for token in tokens:
        depth += is_open(token) - is_close(token)
        if token.value in {",", ";"}:
            found.add(depth)
    return found


def _starts_decimal(tokens: Sequence[Token], index: int) -> bool:
    return tokens[index].value == "." and index + 1 < len(tokens) and tokens[index + 1].kind == "num"


# -- structure ---------------------------------------------------------------------------------------------------------


def parse_tokens(tokens: Sequence[Token]) -> Answer:
    """The typed answer of a token list."""
    label = _label_length(tokens)
    if not label:
        tokens = trim(tokens)
    if not tokens:
        raise AnswerError("an item is empty")
    for reader in (
        _choice,
        _special_text,
        number_words,
        compound_quantity,
        mixed_words,
        _list,
        _approximation,
        _relation,
        _combination,
        _labelled,
        _bracketed,
        _matrices,
        _ratio,
    ):
        answer = reader(list(tokens))
        if answer is not None:
            return answer
    value = parse_value(list(tokens))
    return Text(_text_key(tokens)) if isinstance(value, Text) else value


def _text_key(tokens: Sequence[Token]) -> str:
    key = text_key(tokens)
    return _SAME_TEXT.get(key, key)


def _letter(tokens: Sequence[Token]) -> str | None:
    """A choice letter: one letter A to Z, alone."""
    if len(tokens) == 3 and tokens[0].value == "{" and tokens[2].value == "}":
        tokens = tokens[1:2]
    if len(tokens) == 1 and tokens[0].kind in {"sym", "word"} and len(tokens[0].value) == 1:
        return tokens[0].value
    return None


def _label_length(tokens: Sequence[Token]) -> int:
    """Number of tokens of a leading choice label ``(C)``, ``C)``, ``C.`` or ``C:``, 0 if there is none."""
    if len(tokens) >= 3 and tokens[0].value == "(" and tokens[2].value == ")" and _letter(tokens[1:2]):
        return 3
    if (
        len(tokens) >= 2
        and tokens[1].value in {")", ".", ":"}
        and _letter(tokens[:1])
        and tokens[0].value in "ABCDEFGHIJ"
    ):
        return 2
    return 0


def _choice(tokens: list[Token]) -> Answer | None:
    if len(tokens) > 1 and tokens[0].kind == "word" and tokens[0].value.lower() in _LABELS:  # "Option C"
        rest = tokens[2:] if tokens[1].value == ":" else tokens[1:]
        letter = _letter(rest) or (_letter(rest[1:2]) if len(rest) == 3 and rest[0].value == "(" else None)
        return Choice(letter.upper()) if letter else None
    letter = _letter(tokens)
    if letter and (letter.isupper() or tokens[0].kind == "word"):
        return Choice(letter.upper())
    length = _label_length(tokens)
    if not length:
        return None
    letter = tokens[1 if length == 3 else 0].value
    rest = tokens[length:]
    if not rest:
        return Choice(letter.upper())
    # (x) y is a product, (C) 7 is a label: only capital letters A to J label something.
    if letter not in "ABCDEFGHIJ" or rest[0].value in {"^", "_", "(", "+", "-", "*", "/", "=", "'"}:
        return None
    # "(B) or (C)" hedges and "(B) is wrong" denies.
    if any(token.value.lower() in _DENIALS for token in rest) or len(split_top(rest, {"or", "and", ","})) > 1:
        return Text(_text_key(tokens))
    return Choice(letter, parse_tokens(rest))


_DENIALS = {"not", "wrong", "incorrect", "false", "no", "never", "except", "isn", "cannot"}


def _special_text(tokens: list[Token]) -> Answer | None:
    if len(tokens) == 1 and tokens[0] in {Token("cmd", "emptyset"), Token("cmd", "emptyset", True)}:
        return Collection(())
    if [token.value for token in tokens] == [r"\{", r"\}"]:
        return Collection(())
    if len(tokens) == 1 and tokens[0].value.startswith("mathbb:"):
        return NamedSet(tokens[0].value[-1])
    if all(token.kind in {"word", "cmd", "op"} for token in tokens) and any(token.kind == "word" for token in tokens):
        key = text_key(tokens)
        if key in _REALS_TEXT:
            return NamedSet("R")
        if key in _EMPTY_TEXT:
            return Collection(())
        if key in _INFINITE | _MINUS_INFINITE:
            infinity = Node("const", value="infty")
            return Value(r"\infty", infinity if key in _INFINITE else Node("neg", (infinity,)))
    return None


def _list(tokens: list[Token]) -> Answer | None:
    pieces = split_top(tokens, _LISTS)
    if len(pieces) == 1:
        return _plus_minus(tokens)
    joiners = {separator.value.lower() for separator, _ in pieces if separator is not None}
    joiner = "and" if "and" in joiners else "or" if "or" in joiners else ","
    if joiner != "," and not pieces[-1][1]:
        return Text(_text_key(tokens))  # "5 or": unfinished
    items: list[Answer] = []
    for _, piece in pieces:
        if not piece:  # the comma before "and"
            continue
        item = parse_tokens(piece)
        items.extend(item.items if isinstance(item, Collection) and piece[0].value != r"\{" else [item])
    if joiner != "," and any(isinstance(item, Text) for item in items):
        return Text(_text_key(tokens))
    return Collection(tuple(items), joiner) if items else None


def _plus_minus(tokens: list[Token]) -> Answer | None:
    r"""Both values of ``1 \pm \sqrt 2``. With ``\mp`` present the signs are linked, otherwise each is free."""
    places = [index for index, token in enumerate(tokens) if token.value in {"pm", "mp"} and token.kind == "cmd"]
    if not places or len(places) > 3 or tokens[0].value == r"\{":
        return None
    linked = any(tokens[index].value == "mp" for index in places)
    choices = [(1,) * len(places), (-1,) * len(places)] if linked else [
        tuple(1 if number_ >> bit & 1 else -1 for bit in range(len(places))) for number_ in range(1 << len(places))
    ]  # fmt: skip
    variants = []
    for signs in choices:
        variant = list(tokens)
        for index, sign in zip(places, signs, strict=True):
            sign = sign if tokens[index].value == "pm" else -sign
            variant[index] = Token("op", "+" if sign > 0 else "-", tokens[index].space)
        variants.append(parse_tokens(variant))
    return Collection(tuple(variants))


def _approximation(tokens: list[Token]) -> Answer | None:
    pieces = [piece for _, piece in split_top(tokens, {"approx"})]
    if len(pieces) == 1:
        return None
    first = pieces[0]
    if first and not is_name(parse_tokens(first)):
        return parse_tokens(first)
    value = parse_tokens(pieces[1])
    return (
        Value(value.latex, value.node, value.unit, value.percent, rounded=True) if isinstance(value, Value) else value
    )


def _relation(tokens: list[Token]) -> Answer | None:
    pieces = split_top(tokens, _RELATIONS | {"in", "colon"})
    if len(pieces) == 1:
        return None
    ops = [separator.value for separator, _ in pieces if separator is not None]
    sides = [split_modulus(piece)[0] for _, piece in pieces]
    if ops[0] == "=" and not sides[0]:
        return parse_tokens(tokens[1:])
    if any(not side for side in sides):
        raise AnswerError(f"a side of '{render(tokens)[:60]}' is empty")
    if ops == ["in"]:
        if not is_name(parse_tokens(sides[0])):
            raise AnswerError(f"'{render(sides[0])[:30]}' is no variable that could be in a set")
        return parse_tokens(sides[1])
    return Relation(tuple(parse_tokens(side) for side in sides), tuple(ops))


def _combination(tokens: list[Token]) -> Answer | None:
    pieces = split_top(tokens, set(_SETS))
    if len(pieces) == 1:
        return None
    ops = tuple(_SETS[separator.value] for separator, _ in pieces if separator is not None)
    return Combined(tuple(parse_tokens(piece) for _, piece in pieces), ops)


def _labelled(tokens: list[Token]) -> Answer | None:
    """ "Answer: 6", "Total area: 15 cm^2": words in front of a colon only name what follows."""
    place = next((index for index, token in enumerate(tokens) if token.value == ":"), 0)
    if not 0 < place < len(tokens) - 1 or not all(token.kind == "word" for token in tokens[:place]):
        return None
    if any(token.value.lower() in _DENIALS for token in tokens[:place]):
        return None
    return parse_tokens(tokens[place + 1 :])


def _bracketed(tokens: list[Token]) -> Answer | None:
    first, last = tokens[0], tokens[-1]
    if len(tokens) < 2:
        return None
    if first.kind == "sym" and first.value.isupper() and tokens[1].value == "(" and _has_comma(tokens[1:]):
        return _bracketed(tokens[1:])  # the point P(8,-2)
    if check_brackets(tokens)[0] != len(tokens) - 1:
        return None
    inner = tokens[1:-1]
    if first.value.startswith("begin:"):
        return environment(tokens, parse_tokens)
    if inner and inner[0].value.startswith("begin:") and first.value in {"(", "["}:
        return _bracketed(inner)  # the brackets of a matrix may stand around its environment
    pieces = [piece for _, piece in split_top(inner, {",", ";"})]
    if first.value == r"\{":
        return _set_builder(inner) or Collection(tuple(item for piece in pieces for item in _flat(piece)))
    if len(pieces) < 2 or first.value not in {"(", "[", "langle"}:
        return None
    left, right = ("(", ")") if first.value == "langle" else (first.value, last.value)
    return Bracketed(left, right, tuple(parse_tokens(piece) for piece in pieces))


def _has_comma(tokens: Sequence[Token]) -> bool:
    """Whether the tokens are one bracket that holds a list."""
    return check_brackets(tokens)[0] == len(tokens) - 1 and len(split_top(tokens[1:-1], {",", ";"})) > 1


def _matrices(tokens: list[Token]) -> Answer | None:
    return matrix_expression(tokens, parse_tokens)


def _flat(tokens: list[Token]) -> tuple[Answer, ...]:
    """Items of one entry of a set: ``1 \\pm \\sqrt 5`` stands for two."""
    variants = _plus_minus(tokens)
    return variants.items if isinstance(variants, Collection) else (parse_tokens(tokens),)


def _set_builder(tokens: list[Token]) -> Answer | None:
    r"""``\{x | x > 2\}`` and ``\{x : x > 2\}`` mean their condition."""
    pieces = [piece for _, piece in split_top(tokens, {"|", ":"})]
    if len(pieces) == 2 and pieces[0] and pieces[0][0].kind == "sym":
        return parse_tokens(pieces[1])
    return None


def _ratio(tokens: list[Token]) -> Answer | None:
    suffix = ""
    while (tokens and tokens[-1].kind == "word") or (suffix and tokens and tokens[-1].value == "."):
        suffix = tokens[-1].value.lower() + suffix
        tokens = tokens[:-1]
    pieces = [piece for _, piece in split_top(tokens, {":"})]
    suffix = suffix.replace(".", "")
    if len(pieces) < 2 or not all(pieces) or suffix not in {"", "am", "pm"}:
        return None
    parts = tuple(parse_tokens(piece) for piece in pieces)
    if not all(isinstance(part, Value) and part.node is not None for part in parts):
        return None
    minutes = pieces[1][0].value if len(pieces) == 2 and len(pieces[1]) == 1 else ""
    clock = bool(suffix) or bool(
        re.fullmatch(r"[0-5]\d", minutes) and re.fullmatch(r"[01]?\d|2[0-4]", render(pieces[0]))
    )
    return Ratio(parts, clock, suffix)
