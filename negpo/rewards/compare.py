r"""Typed comparison of two answers with three outcomes: True, False, or None where only a symbolic engine could tell.

The gold answer decides what is compared: words with words, letters with letters, ordered things in order, sets without
order, intervals by their brackets. Nothing is ever compared after dropping brackets, signs or a factor of 100. See
``docs/verifier.md`` for the table of conventions.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from negpo.rewards.answers import (
    Answer,
    Based,
    Bracketed,
    Choice,
    Collection,
    Combined,
    Matrix,
    NamedSet,
    Ratio,
    Reading,
    Relation,
    Text,
    Value,
    is_name,
)
from negpo.rewards.evaluate import equal_expressions, rational_value, real_value
from negpo.rewards.expression import Node, free_symbols, number
from negpo.rewards.matrices import as_vector
from negpo.rewards.options import EXACT, GradeOptions
from negpo.rewards.realsets import same_set, to_real_set
from negpo.rewards.tokens import AnswerError
from negpo.rewards.units import conversion

Engine = Callable[[str, str], bool | None]
MAX_ITEMS = 60
_DEGREES, _RADIANS = (("deg", 1),), (("rad", 1),)
_FLIP = {"<": ">", ">": "<", "le": "ge", "ge": "le", "=": "=", "ne": "ne", "equiv": "equiv"}


def conjunction(verdicts: Sequence[bool | None]) -> bool | None:
    """All true, any false, else undecided."""
    return False if False in verdicts else None if None in verdicts else True


def disjunction(verdicts: Sequence[bool | None]) -> bool | None:
    """Any true, all false, else undecided."""
    return True if True in verdicts else None if None in verdicts else False


class Comparison:
    """Compares answers. ``engine(gold_latex, pred_latex)`` is asked about values the small parser cannot decide;
    without it such values leave the comparison undecided and ``needs_engine`` is set.
    """

    def __init__(self, engine: Engine | None = None, options: GradeOptions = EXACT):
        self.engine, self.options = engine, options
        self.needs_engine = False
        self.too_large = False

    def readings(self, gold: Sequence[Reading], pred: Sequence[Reading]) -> bool | None:
        """Whether any reading of the response equals any reading of the gold answer."""
        if any(g.key == p.key for g in gold for p in pred):
            return True
        verdicts: list[bool | None] = []
        for g in gold:
            for p in pred:
                if isinstance(g.answer, Text):
                    verdicts.append(g.answer.key == p.text_key)
                else:
                    verdicts.append(self.equal(g.answer, p.answer))
        return disjunction(verdicts)

    # -- dispatch -----------------------------------------------------------------------------------------------------
    def equal(self, gold: Answer, pred: Answer) -> bool | None:
        if gold == pred:
            return True
        if isinstance(pred, Choice) or isinstance(gold, Choice):
            return self.choices(gold, pred)
        if isinstance(gold, Text) or isinstance(pred, Text):
            return False
        if isinstance(gold, Relation) or isinstance(pred, Relation) or _all_relations(gold) or _all_relations(pred):
            return self.relations(gold, pred)
        return self.plain(gold, pred)

    def plain(self, gold: Answer, pred: Answer) -> bool | None:
        """Both sides without relations, words or letters."""
        if isinstance(gold, Value) and isinstance(pred, Value):
            return self.values(gold, pred)
        if isinstance(gold, Value) and isinstance(pred, Matrix | Bracketed):
            gold = _unit_vectors(gold, pred)
        if isinstance(pred, Value) and isinstance(gold, Matrix | Bracketed):
            pred = _unit_vectors(pred, gold)
        if isinstance(gold, Based) or isinstance(pred, Based):
            return self.based(gold, pred)
        if isinstance(gold, Ratio) or isinstance(pred, Ratio):
            return self.ratios(gold, pred)
        if isinstance(gold, Matrix) or isinstance(pred, Matrix):
            return self.matrices(gold, pred)
        if isinstance(gold, Bracketed) and isinstance(pred, Bracketed):
            return self.bracketed(gold, pred)
        if isinstance(gold, Combined | NamedSet) or isinstance(pred, Combined | NamedSet):
            return self.real_sets(gold, pred)
        if isinstance(gold, Collection) or isinstance(pred, Collection):
            if isinstance(gold, Bracketed) or isinstance(pred, Bracketed):
                # {(1,2)} is the pair (1,2); {1,2} and (1,2) are different things.
                return self.collections(gold, pred) if _has_brackets(gold) and _has_brackets(pred) else False
            return self.collections(gold, pred)
        return False

    # -- values -------------------------------------------------------------------------------------------------------
    def values(self, gold: Value, pred: Value) -> bool | None:
        if gold.modulus and pred.modulus and gold.modulus != pred.modulus:
            return False
        if (gold.unit and pred.percent) or (gold.percent and pred.unit):
            return False
        if (gold.loose and not pred.unit) or (pred.loose and not gold.unit):
            return False  # plain letters are units only beside a unit
        verdict = self.quantities(gold, pred)
        if verdict is False and gold.rounded and not pred.rounded:
            return self.rounds_to(gold, pred)
        if verdict is not True and self.options.tolerant and self.within_tolerance(gold, pred):
            return True
        return verdict

    def within_tolerance(self, gold: Value, pred: Value) -> bool:
        """Two real numbers that differ by no more than the options allow; units are converted first."""
        factor = conversion(pred.unit, gold.unit) if gold.unit and pred.unit else Fraction(1)
        if factor is None or gold.percent != pred.percent or gold.node is None or pred.node is None:
            return False
        wanted, given = real_value(gold.node), real_value(pred.node)
        if wanted is None or given is None or not (math.isfinite(wanted) and math.isfinite(given)):
            return False
        given = given * factor.numerator / factor.denominator
        allowed = max(self.options.relative * abs(wanted), self.options.absolute)
        if self.options.significant_digits:
            allowed = max(allowed, _half_of_last_digit(gold.latex))
        return bool(abs(given - wanted) <= allowed * (1 + 1e-12))

    def quantities(self, gold: Value, pred: Value) -> bool | None:
        factor = Fraction(1)
        if gold.unit and pred.unit:
            ratio = conversion(pred.unit, gold.unit)
            if ratio is None and {gold.unit, pred.unit} != {_DEGREES, _RADIANS}:
                return False
            factor = ratio or Fraction(0)
        verdict = self.expressions(gold, pred, factor) if factor else False
        if verdict is True:
            return True
        verdicts: list[bool | None] = [verdict]
        # A percent sign may be a unit (handled above) or a hundredth.
        if gold.percent != pred.percent:
            verdicts.append(self.expressions(gold, pred, Fraction(1, 100) if pred.percent else Fraction(100)))
        # 60 degrees is pi/3, but only where exactly one side says degrees.
        if (gold.unit == _DEGREES) != (pred.unit == _DEGREES) and {gold.unit, pred.unit} <= {_DEGREES, _RADIANS, ()}:
            turn = Node("div", (Node("const", value="pi"), number(180)))
            scaled = [Node("mul", (v.node, turn)) if v.unit == _DEGREES and v.node else v.node for v in (gold, pred)]
            if all(scaled):
                verdicts.append(equal_expressions(scaled[0], scaled[1]))  # type: ignore[arg-type]
        return disjunction(verdicts)

    def expressions(self, gold: Value, pred: Value, factor: Fraction = Fraction(1)) -> bool | None:
        if factor == 1 and gold.latex == pred.latex and gold.node is None:
            return True
        if gold.node is not None and pred.node is not None:
            scaled = pred.node if factor == 1 else Node("mul", (pred.node, number(factor)))
            verdict = equal_expressions(gold.node, scaled)
            if verdict is not None or not (free_symbols(gold.node) or free_symbols(pred.node)):
                self.too_large |= verdict is None
                return verdict
        if factor != 1:
            return False
        return self.ask_engine(gold.latex, pred.latex)

    def ask_engine(self, gold: str, pred: str) -> bool | None:
        if hopeless(gold) or hopeless(pred):
            self.too_large = True
            return None
        if self.engine is not None:
            return self.engine(gold, pred)
        self.needs_engine = True
        return None

    def rounds_to(self, gold: Value, pred: Value) -> bool | None:
        r"""A gold marked ``\approx`` accepts every exact value that rounds to it."""
        stated = rational_value(gold.node) if gold.node else None
        exact = real_value(pred.node) if pred.node else None
        if stated is None or exact is None:
            return False
        decimals = len(gold.latex.partition(".")[2].strip())
        half = Fraction(1, 2 * 10**decimals)
        return bool(float(stated - half) <= float(exact) <= float(stated + half))

    # -- letters, bases, ratios ---------------------------------------------------------------------------------------
    def choices(self, gold: Answer, pred: Answer) -> bool | None:
        if isinstance(gold, Choice) and isinstance(pred, Choice):
            return gold.letter == pred.letter
        if isinstance(pred, Choice):
            # "(C) 7" for the gold value 7, and the one-letter name of a quantity.
            return self.equal(gold, pred.rest) if pred.rest is not None else False
        # A bare lower-case letter answers a multiple-choice question; R and r are different quantities.
        symbol = pred.node.value if isinstance(pred, Value) and pred.node and pred.node.op == "sym" else None
        return isinstance(gold, Choice) and gold.letter in "ABCDE" and symbol == gold.letter.lower()

    def based(self, gold: Answer, pred: Answer) -> bool | None:
        if isinstance(gold, Based) and isinstance(pred, Based):
            return gold.base == pred.base and _digits(gold) == _digits(pred)
        if isinstance(gold, Based):
            # The question names the base, so the digits alone are the answer.
            return bool(isinstance(pred, Value) and not pred.unit and pred.latex.replace(" ", "") == gold.digits)
        if isinstance(gold, Value) and isinstance(pred, Based):
            value = _based_value(pred)
            return value is not None and self.values(gold, Value("", number(value)))
        return False

    def ratios(self, gold: Answer, pred: Answer) -> bool | None:
        if isinstance(gold, Ratio) and isinstance(pred, Ratio):
            if len(gold.parts) != len(pred.parts) or (gold.suffix and pred.suffix and gold.suffix != pred.suffix):
                return False
            same = conjunction([self.equal(g, p) for g, p in zip(gold.parts, pred.parts, strict=True)])
            if same or gold.clock or pred.clock:
                return same
            return self.proportional_parts(gold, pred)
        ratio, other = (gold, pred) if isinstance(gold, Ratio) else (pred, gold)
        if isinstance(other, Value) and isinstance(ratio, Ratio) and len(ratio.parts) == 2 and not ratio.clock:
            quotient = Node("div", (ratio.parts[0].node, ratio.parts[1].node))  # type: ignore[union-attr, arg-type]
            return self.equal(other, Value("", quotient)) if other.node is not None else False
        return False

    def proportional_parts(self, gold: Ratio, pred: Ratio) -> bool | None:
        g, p = ([part.node for part in ratio.parts] for ratio in (gold, pred))  # type: ignore[union-attr]
        return conjunction([
            equal_expressions(Node("mul", (g[0], p[i])), Node("mul", (g[i], p[0])))  # type: ignore[arg-type]
            for i in range(1, len(g))
        ])  # fmt: skip

    # -- structures ---------------------------------------------------------------------------------------------------
    def matrices(self, gold: Answer, pred: Answer) -> bool | None:
        if isinstance(gold, Matrix) and isinstance(pred, Matrix):
            if [len(row) for row in gold.rows] != [len(row) for row in pred.rows]:
                return False
            pairs = [(g, p) for a, b in zip(gold.rows, pred.rows, strict=True) for g, p in zip(a, b, strict=True)]
            return self.in_order(*zip(*pairs, strict=True)) if pairs else True
        matrix, other = (gold, pred) if isinstance(gold, Matrix) else (pred, gold)
        # A single row or column is the vector (a, b, c).
        if (
            isinstance(matrix, Matrix)
            and isinstance(other, Bracketed)
            and (other.left, other.right) in {("(", ")"), ("[", "]")}
        ):
            entries = matrix.rows[0] if len(matrix.rows) == 1 else [row[0] for row in matrix.rows if len(row) == 1]
            if len(entries) == max(len(matrix.rows), len(matrix.rows[0])):
                left, right = (entries, other.items) if matrix is gold else (other.items, entries)
                return self.in_order(left, right)
        return False

    def in_order(self, gold: Sequence[Answer], pred: Sequence[Answer]) -> bool | None:
        if len(gold) != len(pred) or len(gold) > MAX_ITEMS * MAX_ITEMS:
            return False
        return conjunction([self.equal(g, p) for g, p in zip(gold, pred, strict=True)])

    def bracketed(self, gold: Bracketed, pred: Bracketed) -> bool | None:
        same_brackets = (gold.left, gold.right) == (pred.left, pred.right)
        # With three entries and more there is no interval to confuse a vector with.
        vectors = (
            len(gold.items) > 2 and gold.left + gold.right in {"()", "[]"} and pred.left + pred.right in {"()", "[]"}
        )
        return self.in_order(gold.items, pred.items) if same_brackets or vectors else False

    def real_sets(self, gold: Answer, pred: Answer) -> bool | None:
        left, right = to_real_set(gold), to_real_set(pred)
        if left is None or right is None:
            return False
        return same_set(left, right, equal_expressions)

    def collections(self, gold: Answer, pred: Answer) -> bool | None:
        """Sets: every element of one side has an equal on the other. A gold that repeats a value wants it repeated."""
        left = gold.items if isinstance(gold, Collection) else (gold,)
        right = pred.items if isinstance(pred, Collection) else (pred,)
        if not left or not right:
            return not left and not right
        if len(right) < len(left):
            return False
        if len(right) > MAX_ITEMS:
            return None
        table = [[self.equal(g, p) for p in right] for g in left]
        for g, row in zip(left, table, strict=True):
            if sum(cell is not False for cell in row) < sum(self.equal(g, h) is True for h in left):
                return False
        return conjunction(
            [disjunction(row) for row in table] + [disjunction(column) for column in zip(*table, strict=True)]
        )

    # -- relations ----------------------------------------------------------------------------------------------------
    def relations(self, gold: Answer, pred: Answer) -> bool | None:
        """Two relations, a relation and a value, an inequality and an interval, or assignments and a tuple."""
        if isinstance(gold, Relation) and isinstance(pred, Relation):
            return self.two_relations(gold, pred)
        left, right = to_real_set(gold), to_real_set(pred)
        if left is not None and right is not None and not isinstance(gold, Value) and not isinstance(pred, Value):
            return same_set(left, right, equal_expressions)
        try:
            stripped = [self.without_names(gold, pred), self.without_names(pred, gold)]
        except AnswerError:
            return False
        if stripped == [gold, pred]:
            if isinstance(gold, Collection) and isinstance(pred, Collection):
                return self.collections(gold, pred)
            return False
        return self.equal(*stripped)

    def without_names(self, answer: Answer, other: Answer) -> Answer:
        """``x = 5`` as 5 where the other side is no relation; ``x=1, x=2`` as {1, 2}; ``x=1, y=2`` as (1, 2)."""
        if isinstance(answer, Relation) and not isinstance(other, Relation):
            value = self.stated_value(answer)
            return answer if value is None else value
        if not isinstance(answer, Collection) or _all_relations(other):
            return answer
        names, values = [], []
        for item in answer.items:
            if isinstance(item, Relation):
                value = self.stated_value(item)
                if value is None or not isinstance(item.sides[0], Value):
                    return answer
                names.append(item.sides[0].latex)
                values.append(value)
            else:
                values.append(item)  # "x = 1, 2"
        letters = {name[:1] for name in names}
        if len(letters) <= 1:
            return Collection(tuple(values), answer.joiner)
        ordered = len(values) == len(names) and len(set(names)) == len(names) and names == sorted(names)
        return Bracketed("(", ")", tuple(values)) if ordered and isinstance(other, Bracketed) else answer

    def stated_value(self, relation: Relation) -> Answer | None:
        """The value of ``name = ... = value``, None if it does not state one.

        Raises:
            AnswerError: its numerical sides contradict each other.
        """
        if set(relation.ops) - {"=", "equiv"}:
            return None
        first, last = relation.sides[0], relation.sides[-1]
        if len(relation.sides) == 2 and is_name(last) and not is_name(first):
            return first
        middle = relation.sides[0 if not is_name(first) else 1 : -1]
        for side in middle:
            if isinstance(side, Value) and side.node is not None and free_symbols(side.node):
                if side is first:
                    return None
                continue
            if self.equal(side, last) is False:
                raise AnswerError("the sides of the equation contradict each other")
        return last

    def two_relations(self, gold: Relation, pred: Relation) -> bool | None:
        left, right = to_real_set(gold), to_real_set(pred)
        if left is not None and right is not None:
            return same_set(left, right, equal_expressions) if _variables(gold) == _variables(pred) else False
        for ops, sides in ((pred.ops, pred.sides), (tuple(_FLIP[op] for op in reversed(pred.ops)), pred.sides[::-1])):
            if gold.ops == ops and self.in_order(gold.sides, sides):
                return True
        if len(gold.ops) > 1 or len(pred.ops) > 1:
            return self.chains(gold, pred)
        return self.proportional(gold, pred)

    def chains(self, gold: Relation, pred: Relation) -> bool | None:
        """``x = 10/2 = 5`` for ``x = 5``: the same name, and the values at the ends are equal."""
        if set(gold.ops) | set(pred.ops) != {"="} or not is_name(gold.sides[0]):
            return False
        try:
            values = self.stated_value(gold), self.stated_value(pred)
        except AnswerError:
            return False
        same_name = self.equal(gold.sides[0], pred.sides[0])
        if same_name is not True or values[0] is None or values[1] is None:
            return same_name and False
        return self.equal(values[0], values[1])

    def proportional(self, gold: Relation, pred: Relation) -> bool | None:
        """One equation is a nonzero multiple of the other (a positive one for inequalities)."""
        if gold.ops != pred.ops and gold.ops[0] != _FLIP[pred.ops[0]]:
            return False
        g, p = _difference(gold), _difference(pred)
        if g is None or p is None:
            return False
        symbols = free_symbols(g)
        if symbols != free_symbols(p) or not symbols:
            return self.defines_same(gold, pred)
        generator = random.Random(7)
        point = {name: number(Fraction(generator.randrange(2, 10**6), 101)) for name in sorted(symbols)}
        g0, p0 = _substitute(g, point), _substitute(p, point)
        values = real_value(g0), real_value(p0)
        if None in values or not values[0] or not values[1]:
            return None
        if gold.ops[0] not in {"=", "ne"}:
            flipped = gold.ops[0] != pred.ops[0]
            if ((values[0] > 0) == (values[1] > 0)) == flipped:
                return False
        return equal_expressions(Node("mul", (g, p0)), Node("mul", (p, g0)))

    def defines_same(self, gold: Relation, pred: Relation) -> bool | None:
        """``f(x) = 2x+1`` states the same as ``y = 2x+1``."""
        heads = [relation.sides[0] for relation in (gold, pred)]
        names = {head.node.value for head in heads if isinstance(head, Value) and head.node and head.node.op == "sym"}
        functions = [str(name) for name in names if "(" in str(name)]
        if gold.ops == pred.ops == ("=",) and len(names) == 2 and len(functions) == 1 and "y" in names:
            return self.equal(gold.sides[1], pred.sides[1])
        return False


def _unit_vectors(value: Value, other: Matrix | Bracketed) -> Answer:
    """``2i - 3j`` as the column that it means, where the other side is a vector; else the value itself."""
    length = len(other.rows) if isinstance(other, Matrix) else len(other.items)
    components = as_vector(value, length)
    return value if components is None else Matrix(tuple((component,) for component in components))


def _half_of_last_digit(latex: str) -> float:
    """Half a unit of the last shown digit of a decimal number with two significant digits or more, else 0. Zeros at
    the end of a whole number are no shown digits.
    """
    match = re.fullmatch(r"\s*-?\s*(\d*)(?:\.(\d*))?\s*(?:e\s*(-?\d{1,3}))?\s*", latex)
    if match is None:
        return 0.0
    whole, decimals, exponent = match[1] or "", match[2] or "", int(match[3] or 0)
    shown = (whole + decimals).lstrip("0") if decimals else whole.strip("0")
    if len(shown) < 2:
        return 0.0
    last = -len(decimals) if decimals else len(whole) - len(whole.rstrip("0"))
    return float(Fraction(1, 2) * Fraction(10) ** (last + exponent))


def hopeless(latex: str) -> bool:
    """Whether an expression is beyond a symbolic engine: very long, deeply nested, or a sum over a huge range."""
    if len(latex) > 2000 or latex.count("{") > 200 or latex.count("^") > 40:
        return True
    huge = re.search(r"\d{7,}|\^\s*\{?\s*\d{3,}|\d{2,}\s*\^\s*\{?\s*\d{1,2}\b", latex)
    return bool(huge and re.search(r"\\(?:sum|prod|int|lim)\b", latex))


def _all_relations(answer: Answer) -> bool:
    return isinstance(answer, Collection) and any(isinstance(item, Relation) for item in answer.items)


def _has_brackets(answer: Answer) -> bool:
    return isinstance(answer, Bracketed) or (
        isinstance(answer, Collection) and any(isinstance(i, Bracketed) for i in answer.items)
    )


def _variables(relation: Relation) -> set[str]:
    return set().union(*(free_symbols(side.node) for side in relation.sides if isinstance(side, Value) and side.node))


def _difference(relation: Relation) -> Node | None:
    nodes = [side.node if isinstance(side, Value) else None for side in relation.sides]
    if None in nodes:
        return None
    return Node("add", (nodes[0], Node("neg", (nodes[1],))))  # type: ignore[arg-type]


def _substitute(node: Node, values: dict[str, Node]) -> Node:
    if node.op == "sym":
        return values[str(node.value)]
    return Node(node.op, tuple(_substitute(arg, values) for arg in node.args), node.value) if node.args else node


def _digits(answer: Based) -> str:
    return answer.digits.lstrip("0") or "0"


def _based_value(answer: Based) -> int | None:
    try:
        return int(answer.digits, answer.base)
    except ValueError:
        return None
