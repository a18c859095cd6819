r"""math-verify as the judge of single expressions. Runs only inside worker processes: it may hang.

It is asked about one value against one value; lists, tuples, intervals, units and relations are taken apart before.
Decimals are rewritten as fractions first, so its rounding to six decimals never applies.
"""

from __future__ import annotations

import logging
import re

from math_verify import LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns about every call without SIGALRM

ENGINE = "math-verify 0.9"
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")


def symbolic_equal(gold: str, pred: str) -> bool | None:
    """Whether two LaTeX expressions are equal; None if the gold expression cannot be read."""
    gold_parsed = read(gold)
    if not gold_parsed:
        return None
    pred_parsed = read(pred)
    return bool(pred_parsed) and bool(verify(gold_parsed, pred_parsed, strict=True, timeout_seconds=None))


def read(latex: str) -> list:
    """What math-verify makes of one expression, [] if it does not understand it."""
    # It would drop words and read the rest, and join numbers that stand side by side.
    if re.search(r"\\text|\d\s+\d|\d\.\d+\.|(?<![\\A-Za-z])[A-Za-z]{4,}|['\"?]|\d\s*\\frac", latex):
        return []
    exact = _DECIMAL.sub(_as_fraction, latex)
    return parse(f"${exact}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


def _as_fraction(match: re.Match[str]) -> str:
    return rf"\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}"
