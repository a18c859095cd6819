"""``math_equal`` of Qwen2.5-Math and its relatives: text, then numbers, then items, then algebra.

The algebra uses latex2sympy and may hang: call it only in a worker process.
"""

from __future__ import annotations

import math
import re


def math_equal(pred: str, gold: str, *, ignore_case: bool) -> bool:
    """Whether an extracted answer is accepted for a gold answer, both already normalised."""
    if (pred.strip().lower() == gold.strip().lower()) if ignore_case else pred == gold:
        return True
    if gold in {"A", "B", "C", "D", "E"} and _choice(pred) == gold:
        return True
    numbers = _number(pred), _number(gold)
    if numbers[0] is not None and numbers[1] is not None:
        return any(
            math.isclose(numbers[0], wanted, rel_tol=1e-4)
            for wanted in (numbers[1] / 100, numbers[1], numbers[1] * 100)
        )
    if not pred:
        return False
    bare = [re.sub(r"[{}()]|^\\[|\\]$", "", side.strip("[]()")).lower() for side in (pred, gold)]
    if bare[0] == bare[1]:
        return True
    items = _items(pred), _items(gold)
    if len(items[0]) == len(items[1]) > 1:
        return all(math_equal(p, g, ignore_case=ignore_case) for p, g in zip(*items, strict=True))
    cells = _cells(pred), _cells(gold)
    if cells[0] and cells[1]:
        return len(cells[0]) == len(cells[1]) and all(
            math_equal(p, g, ignore_case=ignore_case) for p, g in zip(*cells, strict=True)
        )
    return _equations(pred, gold, ignore_case)


def _equations(pred: str, gold: str, ignore_case: bool) -> bool:
    """Two equations by their differences, a short name before a value dropped, else plain algebra."""
    sides = pred.split("="), gold.split("=")
    if len(sides[0]) == len(sides[1]) == 2:
        differences = [f"{left.strip()} - ({right.strip()})" for left, right in sides]
        return symbolic_equal(*differences) or symbolic_equal(f"-({differences[0]})", differences[1])
    if len(sides[0]) == 2 and len(sides[0][0].strip()) <= 2 and len(sides[1]) == 1:
        return math_equal(sides[0][1], gold, ignore_case=ignore_case)
    if len(sides[1]) == 2 and len(sides[1][0].strip()) <= 2 and len(sides[0]) == 1:
        return math_equal(pred, sides[1][1], ignore_case=ignore_case)
    return symbolic_equal(pred, gold)


def _choice(text: str) -> str:
    letters = re.findall(r"\b([A-E])\b", text.strip("\n").rstrip(".").upper())
    return letters[-1] if letters else text.strip().strip(".")


def _number(text: str) -> float | None:
    text = text.replace(",", "").strip()
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(text.rstrip("\\%")) / 100 if text.endswith("%") else None
    except ValueError:
        return None


def _items(text: str) -> list[str]:
    """Parts between commas of a bracketed text; bracket types do not matter."""
    if re.fullmatch(r"[(\[].+[)\]]", text, re.DOTALL):
        return [part.strip() for part in text[1:-1].split(",")]
    return []


def _cells(text: str) -> list[str]:
    match = re.fullmatch(r"\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}", text, re.DOTALL)
    return [cell.strip() for row in re.split(r"\\\\", match[1]) for cell in row.split("&")] if match else []


def symbolic_equal(pred: str, gold: str) -> bool:
    """Equality by computer algebra, with relative error 1e-4 where both are numbers."""
    from sympy import N, simplify

    first, second = _read(pred), _read(gold)
    if first is None or second is None:
        return first is None and second is None and pred == gold
    try:
        if str(first) == str(second) or first == second:
            return True
        if simplify(first - second) == 0:
            return True
    except Exception:  # whatever sympy raises, the original goes on
        pass
    try:
        return math.isclose(float(N(first)), float(N(second)), rel_tol=1e-4)
    except Exception:
        return False


def _read(text: str):
    """A sympy expression as the original's LaTeX reader understands it, None where that reader fails.

    Unlike latex2sympy it takes pi for a letter and ``1\\frac12`` for a product, and knows no relations, lists or sets.
    """
    from latex2sympy2_extended import latex2sympy
    from sympy import Expr, Symbol, pi

    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.replace("\\,", ""))
    if re.search(r"[,:]|\\text|\\approx|\\pm", text):
        return None
    text = re.sub(r"(?<=\d)\\frac", r"\\cdot\\frac", text)
    text = re.sub(r"\\log_(\d)", r"\\log_{\1}", text)
    try:
        expression = latex2sympy(text)
    except Exception:
        return None
    return expression.subs(pi, Symbol("pi")) if isinstance(expression, Expr) else None
