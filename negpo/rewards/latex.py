r"""From the LaTeX people and models write to a flat list of tokens.

Two steps: :func:`clean` rewrites spelling variants (``\dfrac`` and ``\tfrac``, ``10,\!080``, ``\left(``, unicode
minus signs, ``\mathbf{8}``) into one spelling, and :func:`tokenize` cuts the result into :class:`Token`. Both are
linear in the length of the text and never fail on strange input; :func:`check_brackets` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


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


_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
        "÷": r"\div ",
        "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ",
        "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
        "°": r"\deg ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ", "φ": r"\phi ",
        "ω": r"\omega ",
        "（": "(", "）": ")", "，": ",", "。": ".", "：": ":", "［": "[", "］": "]", "⟨": r"\langle ", "⟩": r"\rangle ",
        "′": "'", "’": "'", "…": r"\dots ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "％": "%", "€": r"\euro ",
        "£": r"\pounds ",
    }
)  # fmt: skip
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le",
    "leqslant": "le",
    "lt": "<", "geq": "ge", "geqslant": "ge", "gt": ">", "neq": "ne", "cdot": "*", "times": "*", "ast": "*", "div": "/",
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "lvert": "|",
    "rvert": "|",
    "vert": "|", "mid": "|", "ldots": "dots", "cdots": "dots", "dotsc": "dots", "dotsb": "dots",
    "varnothing": "emptyset",
    "degree": "deg", "colon": ":", "setminus": "setminus", "backslash": "setminus", "smallsetminus": "setminus",
    "lor": "or",
    "vee": "or", "land": "and", "wedge": "and", "infin": "infty", "textdollar": "dollar", "simeq": "approx",
    "sim": "approx",
    "varphi": "phi", "varepsilon": "epsilon", "arcctg": "arccot", "tg": "tan", "ctg": "cot", "mod": "bmod", "Re": "Re",
}  # fmt: skip
_INVISIBLE = {
    "left", "right", "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr",
    "Biggl", "Biggr",
    "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "quad", "qquad", "enspace", "thinspace",
    "medspace",
    "thickspace", "hfill", "noindent", "bf", "rm", "it", "mathstrut", "strut", "nonumber", "notag", "hline",
    "centering",
}  # fmt: skip
_TEXT_MODE = {
    "text",
    "textbf",
    "textit",
    "textrm",
    "textnormal",
    "textsf",
    "texttt",
    "mbox",
    "hbox",
    "emph",
    "underline",
}
_TRANSPARENT = {
    "mathrm", "mathbf", "mathit", "mathsf", "mathtt", "mathcal", "boldsymbol", "bm", "pmb", "operatorname", "boxed",
    "fbox", "bold",
    "mathop", "mathord", "ensuremath",
}  # fmt: skip
_FUNCTION_WORDS = {
    "sin", "cos", "tan", "cot", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "exp", "sqrt",
    "gcd", "lcm", "pi", "or", "and", "infty", "theta",
}  # fmt: skip

# What the tokenizer knows besides commands: thousands separators need at least one full group of three digits.
_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<num>\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)
      | \\(?P<cmd>[A-Za-z]+)\*?
      | \\(?P<escaped>[{}])
      | (?P<row>\ue000)
      | (?P<word>[A-Za-z]{2,})
      | (?P<sym>[A-Za-z])
      | (?P<op>.)""",
    re.VERBOSE | re.DOTALL,
)
_GROUPED_BY_BLANK = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])")
_OPENING = {"(", "[", r"\{", "{", "lfloor", "lceil", "langle"}
_CLOSING = {")", "]", r"\}", "}", "rfloor", "rceil", "rangle"}
_STRICT_PAIRS = {"}": "{", r"\}": r"\{", "rfloor": "lfloor", "rceil": "lceil", "rangle": "langle"}


def clean(text: str) -> str:
    r"""One spelling for what means the same. Keeps ``\text{...}``, matrices, brackets; drops dollars, spacing and
    sizes.
    """
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\ufeff]", " ", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPT) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m[0].translate(_SUBSCRIPT) + "}", text)
    text = text.translate(_UNICODE)
    # A doubled backslash ends a matrix row; outside of a matrix it is an escaped single one or a line break.
    if r"\begin" in text:
        text = re.sub(r"\\\\(\[[^\]]{0,12}\])?", "\ue000", text)
    else:
        text = re.sub(r"\\\\(?![A-Za-z{}%$,;!])", " ", text).replace("\\\\", "\\")
    text = (
        text.replace(r"\$", r"\dollar ").replace("$", " ").replace(r"\%", "%").replace(r"\#", "#").replace(r"\_", "_")
    )
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = re.sub(r"\\!\s*|\\-|\\/", "", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ",", text)
    text = re.sub(r"\\[,;: >]|~", " ", text)
    text = re.sub(r"\^\s*(?:\{\s*\\(?:circ|deg|degree)\s*\}|\\(?:circ|deg|degree)(?![A-Za-z]))", r"\\deg ", text)
    text = re.sub(r"\\(?:left|right)\s*\.", " ", text)
    text = re.sub(r"\\(?:hspace|vspace|label|tag|phantom|hphantom|vphantom)\*?\s*\{[^{}]{0,40}\}", " ", text)
    text = re.sub(r"(?<=[\w)}])\*\*(?=[\w({-])", "^", text)  # a power in program notation; else bold markdown
    text = text.replace(r"\not=", r"\ne ").replace("**", "").replace("`", "")
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ")
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text)
    return re.sub(r"\s+", " ", text).strip()


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
            out.extend(_letters(value, space, in_text, text, position))
        elif kind == "sym":
            out.append(Token("word" if in_text else "sym", value, space))
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


def _letters(value: str, space: bool, in_text: bool, text: str, end: int) -> list[Token]:
    """A run of letters: a word in text mode, a function name, a word of four letters or more, else single symbols."""
    if value in _FUNCTION_WORDS and not in_text:
        return [Token("cmd", value, space)]
    if value.lower() in {"infinity", "inf"} and not in_text:
        return [Token("cmd", "infty", space)]
    subscripted = text[end : end + 1] == "_"
    if in_text or (not subscripted and (len(value) >= 4 or value.lower() in _SHORT_WORDS)):
        return [Token("word", value, space)]
    return [Token("sym", letter, space and index == 0) for index, letter in enumerate(value)]


_SHORT_WORDS = {
    "yes", "no", "odd", "all", "one", "two", "six", "ten", "the", "not", "cm", "mm", "km", "kg", "mg", "ml", "ft",
    "lb", "lbs",
    "oz", "mph", "mi", "yd", "hr", "hrs", "min", "sec", "sq", "in", "am", "pm", "is", "to", "of", "if", "nan", "but",
    "for", "are",
    "an", "deg", "day", "men", "cup", "red", "map", "via", "per", "dne",
}  # fmt: skip


def _scan_command(text: str, position: int, name: str, space: bool, group: bool, out: list[Token]) -> int:
    """Handles one command whose name ends at ``position``; returns where scanning goes on."""
    name = _RENAMED.get(name, name)
    if name in _INVISIBLE:
        return position
    if name in _TEXT_MODE or name in _TRANSPARENT:
        inner, end = braced(text, position)
        if inner is None:
            return position
        # Upright letters are words (units) when there are several of them, symbols otherwise.
        words = name in _TEXT_MODE and re.search(r"[A-Za-z]", inner) and "\\" not in inner.replace("\\ ", "")
        upright = name == "mathrm" and bool(re.fullmatch(r"\s*[A-Za-z]{2,}\s*", inner))
        if name == "operatorname" or (upright and inner.strip() in _FUNCTION_WORDS):
            out.append(Token("cmd", inner.strip(), space))
        elif words or upright:
            _scan(inner.replace("\\ ", " "), group, out, in_text=True)
        else:
            # Braces keep a group together: \mathbf{x+1}^2.
            out.append(Token("op", "{", space))
            _scan(inner, group, out, in_text=False)
            out.append(Token("op", "}"))
        return end
    if name in {"begin", "end", "mathbb"}:
        inner, end = braced(text, position)
        out.append(Token("cmd", f"{name}:{(inner or '').strip('* ')}", space))
        return end
    if name in {"*", "/", "<", ">", "|", "[", "]", "(", ")", ":", r"\{", r"\}"}:
        out.append(Token("op", name, space))
    else:
        out.append(Token("cmd", name, space))
    return position


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
    return (token.value in _OPENING and token.kind in {"op", "cmd"}) or token.value.startswith("begin:")


def is_close(token: Token) -> bool:
    return (token.value in _CLOSING and token.kind in {"op", "cmd"}) or token.value.startswith("end:")


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


def split_top(tokens: Sequence[Token], separators: set[str]) -> list[tuple[Token | None, list[Token]]]:
    """Pieces between separators outside of all brackets, each with the separator before it (None for the first)."""
    pieces: list[tuple[Token | None, list[Token]]] = [(None, [])]
    depth = 0
    for token in tokens:
        depth += is_open(token) - is_close(token)
        if depth == 0 and token.value in separators and not is_close(token):
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
