r"""The grader released with MATH (Hendrycks et al., arXiv:2103.03874): equality of normalised strings of the last box.

Known behaviour kept: no symbolic comparison at all, everything behind ``\text{ `` is cut, two missing answers are
equal.
"""

from __future__ import annotations

from negpo.rewards.reference.spelling import (
    brace_fractions,
    brace_roots,
    drop_short_name,
    last_boxed,
    slash_to_fraction,
)

_DELETED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")


class HendrycksGrader:
    name = "hendrycks-math"
    slow = False

    def grade(self, response: str, gold: str) -> tuple[bool, str | None]:
        extracted = last_boxed(response)
        return is_equiv(extracted, gold), extracted


def is_equiv(first: str | None, second: str | None) -> bool:
    """Equality of normalised strings; two None are equal, one None is not."""
    if first is None or second is None:
        return first is second
    return normalize(first) == normalize(second)


def normalize(text: str) -> str:
    """The normal form of an answer string."""
    for piece in _DELETED[:2]:
        text = text.replace(piece, "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for piece in _DELETED[2:]:
        text = text.replace(piece, "")
    text = text.split("\\text{ ")[0].replace("\\%", "").replace("%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    text = brace_roots(drop_short_name(text), whole_word=False).replace(" ", "")
    text = brace_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return slash_to_fraction(text, roots=False)
