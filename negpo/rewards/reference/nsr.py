r"""The grader of the NSR paper's code (arXiv:2506.01347): an older relative of Qwen's.

Known behaviour kept: only the first line of the answer counts, ``\cdot`` is deleted (``2\cdot 3`` becomes 23),
doubled backslashes collapse, ``\text`` loses its command but not its braces. For AIME and AMC the gold answer is
compared as it is (mode ``nsr``), for MATH both sides are extracted and normalised (mode ``nsr_math``).
"""

from __future__ import annotations

import re

from negpo.rewards.reference.matching import math_equal
from negpo.rewards.reference.qwen import after_box, common_words, last_number, tidy
from negpo.rewards.reference.spelling import brace_fractions, brace_roots, drop_short_name, slash_to_fraction


class NsrGrader:
    slow = True

    def __init__(self, *, extract_gold: bool = False):
        self.extract_gold = extract_gold
        self.name = "nsr-math" if extract_gold else "nsr"

    def grade(self, response: str, gold: str) -> tuple[bool, str | None]:
        extracted = extract_answer(response)
        wanted = extract_answer(f"\\boxed{{{gold}}}") if self.extract_gold else gold
        return math_equal(extracted, wanted, ignore_case=False), extracted


def extract_answer(response: str) -> str:
    """The answer of a response, "" if there is none."""
    if "boxed" in response:
        found = after_box(response)
    elif "he answer is" in response:
        found = response.split("he answer is")[-1].strip()
    else:
        found = last_number(response)
    return tidy(found.split("\n")[0], strip_string)


def strip_string(text: str) -> str:
    """This grader's normal form of an answer."""
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = re.sub(r"\\text\{.*?\}$", "", text).strip() or text
    for deleted in ("^{\\circ}", "^\\circ", "\\$", "$", "\\text", "x\\in", "\\%", "%", "\\cdot"):
        text = text.replace(deleted, "")
    text = common_words(text.replace(" .", " 0.").replace("{.", "{0."))
    text = re.sub(r"(\d+)\.0+(?=\D|$)", r"\1", text)
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    text = brace_roots(drop_short_name(text), whole_word=True).replace(" ", "")
    return slash_to_fraction(brace_fractions(text), roots=True)
