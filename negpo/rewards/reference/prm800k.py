r"""The grader released with PRM800K (Lightman et al., arXiv:2305.20050), also used by rllm and DeepScaleR.

String equality in the Hendrycks normal form, else an own normal form compared item by item. Known behaviour kept:
unreduced fractions are wrong, a whole-number gold accepts only a whole number, hard expressions are not compared
symbolically, numbers within 1e-7 of a whole number are that number, long numbers lose digits in floating point.
"""

from __future__ import annotations

import re

from negpo.rewards.cleaning import clean
from negpo.rewards.evaluate import equal_expressions
from negpo.rewards.expression import parse_expression
from negpo.rewards.reference.hendrycks import is_equiv
from negpo.rewards.reference.spelling import last_boxed
from negpo.rewards.tokens import AnswerError, tokenize

# The words its release deletes.
_UNITS = "degree|centimeter|cm|meter|mile|second|minute|hour|day|week|month|year|foot|feet|inch|yard"


class Prm800kGrader:
    name = "prm800k"
    slow = False

    def grade(self, response: str, gold: str) -> tuple[bool, str | None]:
        extracted = last_boxed(response)
        return extracted is not None and grade_answer(extracted, gold), extracted


def grade_answer(given: str, gold: str) -> bool:
    """Whether a given answer is accepted for the gold answer."""
    if is_equiv(given, gold):
        return True
    given, gold = normalize(given), normalize(gold)
    if given == gold:
        return True
    if not given:
        return False
    given_items, gold_items = split_tuple(given), split_tuple(gold)
    if len(gold_items) > 1 and (given[0], given[-1]) != (gold[0], gold[-1]):
        return False
    return len(given_items) == len(gold_items) and all(map(_same_item, given_items, gold_items))


def normalize(text: str) -> str:
    """The normal form: no units, no dollars, words of magnitude as powers, lower case, no spaces."""
    whole = re.fullmatch(r"\\text\{(.+?)\}", text)
    text = whole[1] if whole else text
    text = text.replace("\\%", "%").replace("\\$", "$").replace("$", "").replace("%", "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, power in (("million", 6), ("billion", 9), ("trillion", 12)):
        text = text.replace(word, f"*10^{power}")
    text = re.sub(rf"(?:{_UNITS})(?:es|s)? *(?:\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    if _near_integer(text):
        text = str(round(float(text)))
    text = _plain(text)
    text = re.sub(r"- *", "-", text)
    text = re.sub(r"([0-9]) +([0-9])", r"\1+\2", text).replace(" ", "").replace("{", "").replace("}", "").lower()
    digits = text.replace(",", "")
    return str(int(float(digits))) if _near_integer(digits) else text


def _plain(text: str) -> str:
    r"""LaTeX as plain text: ``\frac{a}{b}`` becomes ``a/b``, roots keep their argument in brackets, other commands
    go.
    """
    text = text.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac").replace("\\frac", " \\frac")
    for _ in range(20):
        simpler = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
        simpler = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\1/\2", simpler)
        simpler = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"sqrt(\1)", simpler)
        if simpler == text:
            break
        text = simpler
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    text = text.replace("\\cdot", "*").replace("\\times", "*").replace("\\pi", "pi").replace("\\infty", "inf")
    text = re.sub(r"\\[,;: ]", " ", text)  # 1\,000 becomes the mixed number 1+000
    return re.sub(r"\\(?:left|right|!)", "", text).strip()


def split_tuple(text: str) -> list[str]:
    """Items of a bracketed list without inner brackets, after dropping commas between thousands; else the text
    itself.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and not set(text[1:-1]) & set("()[]"):
        return [item.strip() for item in text[1:-1].split(",")]
    return [text] if text else []


def _same_item(given: str, gold: str) -> bool:
    fraction = r"-?[0-9]+.?/0*[1-9][0-9]*.?"
    if re.fullmatch(fraction, given) and re.fullmatch(fraction, gold):
        return given == gold
    if _near_integer(gold.replace(",", "")) != _near_integer(given.replace(",", "")):
        return False
    return given == gold or _symbolically_equal(given, gold)


def _symbolically_equal(given: str, gold: str) -> bool:
    difference = f"({gold})-({given})"
    letters = set(re.sub(r"sqrt|frac", "", difference)) & set("abcdefghijklmnopqrstuvwxyz")
    if len(letters) > 2 or re.search(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]+", difference):
        return False
    try:
        trees = [parse_expression(tokenize(clean(re.sub(r"sqrt(?=\()", r"\\sqrt", text)))) for text in (given, gold)]
    except (AnswerError, RecursionError):
        return False
    return equal_expressions(*trees) is True


def _near_integer(text: str) -> bool:
    try:
        value = float(text)
        return abs(value - round(value)) <= 1e-7
    except (ValueError, OverflowError):
        return False
