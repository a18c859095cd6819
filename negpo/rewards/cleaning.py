r"""One spelling for what means the same: unicode, LaTeX variants, spacing, sizes, colours, dollars.

:func:`clean` is linear in the length of the text and never fails. It changes spelling only: brackets, signs, digits,
operators and words all survive.
"""

from __future__ import annotations

import re
import unicodedata

from negpo.rewards.wordlist import words

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-", "－": "-",
        "×": r"\times ", "✕": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "•": r"\cdot ", "∙": r"\cdot ",
        "∗": "*", "÷": r"\div ", "∕": "/", "⁄": "/",
        "∞": r"\infty ", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ",
        "≤": r"\le ", "≦": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "≧": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
        "≈": r"\approx ", "≃": r"\approx ", "≡": r"\equiv ", "±": r"\pm ", "∓": r"\mp ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅": r"\emptyset ", "⌀": r"\emptyset ",
        "∧": r"\land ", "∨": r"\lor ", "¬": r"\neg ", "∠": r"\angle ", "△": r"\triangle ", "∑": r"\sum ",
        "∏": r"\prod ", "∫": r"\int ", "∂": r"\partial ", "→": r"\to ", "⇒": r"\Rightarrow ", "⇔": r"\iff ",
        "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
        "°": r"\deg ", "º": r"\deg ", "˚": r"\deg ", "℃": r"\deg C", "℉": r"\deg F", "⊤": r"\top ",
        "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
        "、": ",", "。": ".", "｡": ".", "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ",
        "′": "'", "’": "'", "‘": "'", "ʹ": "'", "″": "''", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"',
        "「": '"', "」": '"', "『": '"', "』": '"', "…": r"\dots ", "⋯": r"\dots ",
        "€": r"\euro ", "£": r"\pounds ", "￡": r"\pounds ", "¥": r"\yen ", "￥": r"\yen ", "₹": r"\rupee ",
        "μ": r"\mu ", "µ": r"\mu ", "Ω": r"\Omega ",
    }
)  # fmt: skip
_GREEK = {
    name: rf"\{name} "
    for name in words("""
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda nu xi pi rho sigma tau upsilon phi chi psi
    omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi
""")
}
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_FRACTIONS = {
    sign: r"\frac{%s}{%s}" % tuple(unicodedata.normalize("NFKC", sign).split("\u2044"))  # noqa: UP031
    for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒"
}
_COLOR = re.compile(r"\\(?:color|textcolor|colorbox|definecolor)\s*(?:\[[^\]]{0,20}\])?\s*\{[^{}]{0,40}\}")
_DEGREE_BRACED = re.compile(r"\^\s*\{\s*(?:\\(?:circ|deg|degree|text\w*\s*\{\s*o\s*\})|o|\\deg)\s*\}")
_DEGREE_PLAIN = re.compile(
    r"\^\s*(?:\\(?:circ|degree|deg)(?![A-Za-z])|(?<=[\d}]\^)o(?![A-Za-z])|\\text\w*\s*\{\s*o\s*\})"
)
_SPACES = re.compile(r"\\(?:hspace|vspace|label|tag|phantom|hphantom|vphantom)\*?\s*\{[^{}]{0,40}\}")


def clean(text: str) -> str:
    r"""One spelling for what means the same. Keeps ``\text{...}``, matrices, brackets; drops dollars, spacing, sizes,
    colours.
    """
    text = _from_unicode(_INVISIBLE.sub(" ", text))
    # A doubled backslash ends a matrix row; outside of a matrix it is an escaped single one or a line break.
    if r"\begin" in text:
        text = re.sub(r"\\\\(\[[^\]]{0,12}\])?", "\ue000", text)
    else:
        text = re.sub(r"\\\\(?![A-Za-z{}%$,;!])", " ", text).replace("\\\\", "\\")
    text = text.replace(r"\$", r"\dollar ").replace("$", " ")
    text = text.replace(r"\%", "%").replace(r"\#", "#").replace(r"\_", "_").replace(r"\&", "&")
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = re.sub(r"\\!\s*|\\-|\\/", "", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ",", text)
    text = re.sub(r"\\[,;: >]|~", " ", text)
    text = _COLOR.sub(" ", text)
    text = _DEGREE_BRACED.sub(r"\\deg ", text)
    text = _DEGREE_PLAIN.sub(r"\\deg ", text)
    text = re.sub(r"\\textdegree(?![A-Za-z])", r"\\deg ", text)
    text = re.sub(r"\\(?:left|right)\s*\.", " ", text)
    text = _SPACES.sub(" ", text)
    text = re.sub(r"(?<=[\w)}])\*\*(?=[\w({-])", "^", text)  # a power in program notation; else bold markdown
    text = text.replace(r"\not=", r"\ne ").replace(r"\not\in", r"\notin ").replace("**", "").replace("`", "")
    text = text.replace("<=", r"\le ").replace(">=", r"\ge ")
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text)
    return re.sub(r"\s+", " ", text).strip()


def _from_unicode(text: str) -> str:
    """ASCII and LaTeX for signs; letters of other scripts stay as they are."""
    if text.isascii():
        return text
    text = _SUPERSCRIPTS.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPT) + "}", text)
    text = _SUBSCRIPTS.sub(lambda m: "_{" + m[0].translate(_SUBSCRIPT) + "}", text)
    text = "".join(_FRACTIONS.get(character, character) for character in text)
    text = text.translate(_UNICODE)
    return "".join(character if character.isascii() else _plain(character) for character in text)


def _plain(character: str) -> str:
    """A digit of any script, a Greek letter as its command, the plain form of a mathematical or full-width letter."""
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.digit(character))
    character = unicodedata.normalize("NFKC", character)
    if len(character) == 1:
        parts = unicodedata.name(character, "").split()
        if parts[:1] == ["GREEK"] and len(parts) == 4 and parts[2] == "LETTER":
            name = parts[3].lower() if parts[1] == "SMALL" else parts[3].capitalize()
            name = {"lamda": "lambda", "Lamda": "Lambda"}.get(name, name)
            return _GREEK.get(name, character)
        return character.translate(_UNICODE)
    return " " if character.isspace() else character
