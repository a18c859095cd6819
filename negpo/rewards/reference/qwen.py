r"""The evaluator of Qwen2.5-Math (arXiv:2409.12122), which most RL papers on MATH report.

Known behaviour kept: a factor of 100 and relative errors below 1e-4 are accepted, bracket types are ignored, units
and single letters are deleted as words, ``and`` vanishes, ``j`` becomes ``i``. The symbolic step runs in a worker.
"""

from __future__ import annotations

import re

from negpo.rewards.number_words import english_integer
from negpo.rewards.reference.matching import math_equal
from negpo.rewards.reference.spelling import brace_fractions, brace_roots, drop_short_name, slash_to_fraction

# Words this evaluator deletes, by topic. The original's list has about 300 entries; these are the ones answers contain.
_UNIT_WORDS = """
    a c d g h l m o p s t v w mm cm dm km mtr mt metre meter metres meters millimeter centimeter kilometer inch inches
    foot feet ft yard yards yd mile miles mg gm kg gram grams kilogram kilograms lb lbs pound pounds ounce ounces oz
    ton tons quintal second seconds sec min minute minutes hr hrs hour hours day days week weeks month months year
    years yr noon am pm liter liters litre litres ml gallon gallons gal acre acres hectare degree degrees deg percent
    cent cents dollar dollars rupee rupees rs euro coin coins profit loss gain mph kmph kmh m/s km/h ohm unit units
    square sq cubic cu cube cc sqft digit digits edge edges meal meals student students monkey men man women woman
    soldier person people child children apple apples way ways tile tiles row rows times time number multiple
    multiples integer integers point points prime ratio east west north south increase decrease less more per by each
    are of for
""".split()  # noqa: SIM905
_UNIT = re.compile(r"(^|\W)(?:" + "|".join(sorted(map(re.escape, _UNIT_WORDS), key=len, reverse=True)) + r")($|\W)")
_NAMES = ("x=", "y=", "z=", "x\\in", "y\\in", "z\\in", "x\\to", "y\\to", "z\\to")


class QwenGrader:
    name = "qwen2.5-math"
    slow = True

    def grade(self, response: str, gold: str) -> tuple[bool, str | None]:
        extracted = strip_string(extract_answer(response))
        return math_equal(extracted, strip_string(gold), ignore_case=True), extracted


def extract_answer(response: str) -> str:
    """The answer of a response by the evaluator's ladder, "" if there is none."""
    return tidy(_find(response), strip_string)


def tidy(found: str, strip) -> str:
    """Removes line breaks, one leading colon, one trailing full stop and slash, then normalises."""
    found = re.sub(r"\n\s*", "", found)
    found = found.removeprefix(":").removesuffix(".").removesuffix("/")
    return strip(found)


def _find(response: str) -> str:
    if "final answer is $" in response and "$. I hope" in response:
        return response.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    if "boxed" in response:
        return after_box(response)
    for phrase in ("he answer is", "final answer is", "答案是"):
        if phrase in response:
            return response.split(phrase)[-1].strip()
    return last_number(response)


def after_box(response: str) -> str:
    """What follows the last "boxed": its brace group (the rest if it never closes), or the text up to a dollar sign."""
    rest = response.split("boxed")[-1]
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth, content = 1, []
    for character in rest[1:]:
        depth += (character == "{") - (character == "}")
        if depth == 0:
            break
        content.append(character)
    return "".join(content)


def last_number(response: str) -> str:
    numbers = re.findall(r"-?\d*\.?\d+", response.replace(",", ""))
    return numbers[-1] if numbers else ""


def strip_string(text: str, *, skip_unit: bool = False) -> str:
    """The evaluator's normal form of an answer."""
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text).replace("\\end{array}", "\\end{pmatrix}")
    text = text.replace("bmatrix", "pmatrix").replace("tfrac", "frac").replace("dfrac", "frac")
    for old, new in (("\\neq", "\\ne"), ("\\leq", "\\le"), ("\\geq", "\\ge"), ("\\left", ""), ("\\right", "")):
        text = text.replace(old, new)
    text = text.replace("\\{", "{").replace("\\}", "}")
    text = _number_word(text)
    text = re.sub(r"\\text\{.*?\}$", "", text).strip() or text
    if not skip_unit:
        text = _without_units(text)
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "").replace("$", "")
    text = text.replace("\\(", "").replace("\\)", "")
    text = re.sub(r"\\text\{(.*?)\}", r"\1", text)
    for name in _NAMES:
        text = text.replace(name, "")
    text = text.replace("\\emptyset", "{}").replace("(-\\infty,\\infty)", "\\mathbb{R}")
    text = text.replace("\\%", "").replace("%", "")
    return _finish(text)


def _number_word(text: str) -> str:
    value = english_integer(text) if re.fullmatch(r"[A-Za-z -]+", text) else None
    return text if value is None else str(value)


def _without_units(text: str) -> str:
    for _ in range(2):
        shorter = _UNIT.sub(r"\1\2", text)
        if shorter:
            text = shorter
    return text


def _finish(text: str) -> str:
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = common_words(text)
    text = re.sub(r"(\d+)\.0*([^\d])", r"\1\2", text)
    text = re.sub(r"(\d+)\.0*$", r"\1", text)
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    text = brace_roots(drop_short_name(text), whole_word=True).replace(" ", "")
    return slash_to_fraction(brace_fractions(text), roots=True)


def common_words(text: str) -> str:
    """Replacements made anywhere, also inside words: infinity, "and", bold, boxes of text, the unit of engineers."""
    if "infinity" in text:
        text = text.replace("infinity", "\\infty")
    elif "\\inf" not in text:
        text = text.replace("inf", "\\infty")
    text = text.replace("and", "").replace("\\mathbf", "")
    text = re.sub(r"\\mbox\{.*?\}", "", text)
    return text.replace("j", "i") if "j" in text and "i" not in text else text
