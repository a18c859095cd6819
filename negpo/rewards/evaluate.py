"""Deciding whether two expressions are equal, in bounded time.

Three steps, cheapest first. Exact rational arithmetic decides everything built from numbers (within a bit budget),
and rational functions by evaluation at random points (Schwartz-Zippel: two different polynomials of degree d agree at
a random point of a set of size S with probability at most d/S; here S = 2**40 and three points). Everything else is
evaluated with 60 and again with 160 digits: a true difference keeps its value, a rounding error shrinks, so numbers
as small as 1/2006! or as large as 10**10**10 are told apart. What cannot be evaluated is undecided, never unequal.
"""

from __future__ import annotations

import math
import random
import threading
from fractions import Fraction
from typing import Any

import mpmath

from negpo.rewards.expression import Node, contains, free_symbols

MAX_BITS = 1 << 17
MAX_POINTS = 6
_PRECISIONS = (60, 160)  # decimal digits
_TINY = mpmath.mpf(10) ** -40


class Undecided(Exception):
    """This arithmetic cannot evaluate the expression: not rational or too large."""


class Undefined(Undecided):
    """The expression has no finite value: a division by zero, a logarithm of zero."""


def equal_expressions(left: Node, right: Node) -> bool | None:
    """True or False when certain, None when this module cannot decide."""
    if left == right:
        return True
    infinite = (_infinity(left), _infinity(right))
    if any(infinite):
        return infinite[0] == infinite[1]
    symbols = sorted(free_symbols(left) | free_symbols(right))
    if len(symbols) > 12:
        return None
    try:
        return _equal_rationally(left, right, symbols)
    except Undefined:
        return False
    except Undecided:
        return _equal_numerically(left, right, symbols)


def real_value(node: Node) -> Any | None:
    """A real number for ordering end points (mpf, or a float infinity), None if it has symbols or is not real."""
    infinite = _infinity(node)
    if infinite:
        return math.inf if infinite == "+" else -math.inf
    if free_symbols(node):
        return None
    arithmetic = Numeric(_PRECISIONS[0])
    try:
        return arithmetic.real(_exact(node, {}))
    except Undecided:
        pass
    try:
        value = arithmetic.evaluate(node, {})
    except Undecided:
        return None
    return value.real if not isinstance(value, _Huge) and _is_real(value) else None


def rational_value(node: Node) -> Fraction | None:
    """The exact value if it is rational and cheap to compute."""
    try:
        return _exact(node, {})
    except Undecided:
        return None


def _infinity(node: Node) -> str:
    if node.op == "const" and node.value == "infty":
        return "+"
    if node.op == "neg":
        return {"+": "-", "-": "+", "": ""}[_infinity(node.args[0])]
    return ""


# -- exact rational arithmetic -----------------------------------------------------------------------------------------


def _equal_rationally(left: Node, right: Node, symbols: list[str]) -> bool:
    if not symbols:
        return _exact(left, {}) == _exact(right, {})
    if not (_is_rational_function(left) and _is_rational_function(right)):
        raise Undecided("not a rational function")
    generator = random.Random(20250617)
    agreed = 0
    for _ in range(MAX_POINTS):
        point = {
            name: Fraction(generator.randrange(1 << 39, 1 << 40), generator.randrange(3, 99, 2)) for name in symbols
        }
        try:
            if _exact(left, point) != _exact(right, point):
                return False
        except ZeroDivisionError:
            continue
        agreed += 1
        if agreed == 3:
            return True
    raise Undecided("no point in the common domain")


def _is_rational_function(node: Node) -> bool:
    """Only field operations and whole-number powers touch the variables."""
    if not free_symbols(node) or node.op == "sym":
        return True
    if node.op == "pow":
        exponent = rational_value(node.args[1]) if not free_symbols(node.args[1]) else None
        return exponent is not None and exponent.denominator == 1 and _is_rational_function(node.args[0])
    return node.op in {"add", "neg", "mul", "div"} and all(_is_rational_function(arg) for arg in node.args)


def _exact(node: Node, env: dict[str, Fraction]) -> Fraction:
    if node.op == "num":
        return node.value  # type: ignore[return-value]
    if node.op == "sym":
        return env[str(node.value)]
    if node.op not in _EXACT:
        raise Undecided(node.op)
    try:
        result = _EXACT[node.op](*(_exact(arg, env) for arg in node.args))
    except ZeroDivisionError:
        if env:
            raise
        raise Undefined("division by zero") from None
    if result.numerator.bit_length() + result.denominator.bit_length() > MAX_BITS:
        raise Undecided("too large")
    return result


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _exact_root(base ** _small(exponent.numerator, base), Fraction(exponent.denominator))
    if base == 0 and exponent == 0:
        raise Undecided("0^0")
    return base ** _small(exponent.numerator, base)


def _small(exponent: int, base: Fraction) -> int:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length(), 1)
    if base not in (0, 1, -1) and abs(exponent) * bits > MAX_BITS:
        raise Undecided("too large")
    return exponent


def _exact_root(radicand: Fraction, degree: Fraction) -> Fraction:
    if degree.denominator != 1 or not 2 <= degree <= 64 or (radicand < 0 and degree % 2 == 0):
        raise Undecided("root")
    sign = -1 if radicand < 0 else 1
    return sign * Fraction(
        *(_integer_root(part, int(degree)) for part in (abs(radicand.numerator), radicand.denominator))
    )


def _integer_root(value: int, degree: int) -> int:
    if value.bit_length() > MAX_BITS // 16:
        raise Undecided("too large")
    guess = math.isqrt(value) if degree == 2 else _newton_root(value, degree)
    if guess**degree != value:
        raise Undecided("irrational")
    return guess


def _newton_root(value: int, degree: int) -> int:
    """Floor of the root of a non-negative integer."""
    if value < 2:
        return value
    guess = 1 << (value.bit_length() // degree + 1)
    while True:
        better = ((degree - 1) * guess + value // guess ** (degree - 1)) // degree
        if better >= guess:
            return guess
        guess = better


def _whole(value: Fraction, limit: int) -> int:
    if value.denominator != 1 or not 0 <= value <= limit:
        raise Undecided("not a small whole number")
    return int(value)


def _exact_binomial(n: Fraction, k: Fraction) -> Fraction:
    return Fraction(math.comb(_whole(n, 20_000), _whole(k, 20_000)))


def _integers(values: tuple[Fraction, ...]) -> list[int]:
    if any(value.denominator != 1 for value in values):
        raise Undecided("not whole")
    return [int(value) for value in values]


_EXACT: dict[str, Any] = {
    "add": lambda *terms: sum(terms, Fraction(0)),
    "neg": lambda value: -value,
    "mul": lambda left, right: left * right,
    "div": lambda top, bottom: top / bottom,
    "pow": _exact_power,
    "root": _exact_root,
    "abs": abs,
    "factorial": lambda value: Fraction(math.factorial(_whole(value, 6000))),
    "binom": _exact_binomial,
    "floor": lambda value: Fraction(math.floor(value)),
    "ceil": lambda value: Fraction(math.ceil(value)),
    "mod": lambda value, modulus: value % modulus,
    "gcd": lambda *values: Fraction(math.gcd(*_integers(values))),
    "lcm": lambda *values: Fraction(math.lcm(*_integers(values))),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
}


# -- arithmetic with many digits ---------------------------------------------------------------------------------------


class _Huge:
    """A real number beyond every mpf we are willing to form, known only by its sign."""

    def __init__(self, sign: int):
        self.sign = sign


def _equal_numerically(left: Node, right: Node, symbols: list[str]) -> bool | None:
    generator = random.Random(42)
    agreed = 0
    for index in range(1 if not symbols else 2 * MAX_POINTS):
        # Half of the points are positive, half have random signs: sqrt(x^2) is x on the positive ones only.
        signs = [1 if index % 2 == 0 else generator.choice((-1, 1)) for _ in symbols]
        point = {
            name: Fraction(sign * generator.randrange(100_000, 400_000), 99_991)
            for name, sign in zip(symbols, signs, strict=True)
        }
        verdict = _equal_at(left, right, point)
        if verdict is False:
            return False
        agreed += verdict is True
        if verdict is None and not symbols:
            return None
    return True if agreed >= (1 if not symbols else 4) else None


def _equal_at(left: Node, right: Node, point: dict[str, Fraction]) -> bool | None:
    """Equality at one point; None where a side is undefined, complex by a branch cut, or too large to be certain."""
    differences = []
    imaginary = contains(left, {"const", "cis"}) or contains(right, {"const", "cis"})
    for digits in _PRECISIONS:
        arithmetic = Numeric(digits)
        try:
            a, b = arithmetic.evaluate(left, point), arithmetic.evaluate(right, point)
        except Undefined:
            return None if point else False  # something that has no value equals nothing
        except Undecided:
            return None
        if isinstance(a, _Huge) or isinstance(b, _Huge):
            return None if isinstance(a, _Huge) and isinstance(b, _Huge) and a.sign == b.sign else False
        if point and not imaginary and not (_is_real(a) and _is_real(b)):
            return None
        # Beyond the precision an integer cannot be told from its neighbour.
        if max(arithmetic.magnitude(a), arithmetic.magnitude(b)) > 3 * digits and a == b:
            return None
        differences.append(a - b)
    coarse, fine = differences
    return bool(fine == 0 or abs(coarse - fine) > abs(fine) / 2**20)


def _is_real(value: Any) -> bool:
    return value.imag == 0 or abs(value.imag) < abs(value.real) * _TINY or abs(value) < _TINY


_contexts = threading.local()


class Numeric:
    """Evaluation with a fixed number of digits, in a context of its own per thread (mpmath's global one is shared)."""

    max_magnitude = 1 << 62

    def __init__(self, digits: int):
        cache: dict[int, Any] = _contexts.__dict__.setdefault("by_digits", {})
        if digits not in cache:
            cache[digits] = mpmath.ctx_mp.MPContext()
            cache[digits].dps = digits
        self.mp = cache[digits]

    def magnitude(self, value: Any) -> int:
        """Position of the leading bit, a small number for zero."""
        size = abs(value)
        return -(1 << 70) if size == 0 else int(self.mp.mag(size))

    def text(self, value: Any, digits: int) -> str | None:
        """Real and imaginary part: a fraction where it is one with a small denominator, else rounded to so many
        digits; None for numbers known only by their size.
        """
        if isinstance(value, _Huge):
            return None
        parts = [part if abs(part) > abs(value) * _TINY else self.mp.zero for part in (value.real, value.imag)]
        return " ".join(self.part_text(part, digits) for part in (parts if parts[1] else parts[:1]))

    def part_text(self, part: Any, digits: int) -> str:
        if part and abs(self.magnitude(part)) < 100:
            mantissa, exponent = self.mp.frexp(part)
            exact = Fraction(int(self.mp.ldexp(mantissa, self.mp.prec)), 1) * Fraction(2) ** (exponent - self.mp.prec)
            close = exact.limit_denominator(10**6)
            if abs(close - exact) <= abs(exact) / 10 ** (self.mp.dps - 12):
                return str(close)
        return str(self.mp.nstr(part, digits)).removesuffix(".0")

    def evaluate(self, node: Node, env: dict[str, Fraction]) -> Any:
        if node.op == "num":
            return self.real(node.value)  # type: ignore[arg-type]
        if node.op == "sym":
            return self.real(env[str(node.value)])
        if node.op == "const":
            return {"pi": self.mp.pi, "e": self.mp.e, "i": self.mp.j}.get(str(node.value), self.mp.nan) + self.mp.zero
        arguments = [self.evaluate(arg, env) for arg in node.args]
        try:
            value = (
                self.huge(node.op, arguments)
                if any(isinstance(a, _Huge) for a in arguments)
                else self.apply(node.op, arguments)
            )
        except ZeroDivisionError as error:
            raise Undefined(str(error)) from error
        except (ValueError, ArithmeticError, mpmath.libmp.NoConvergence) as error:
            raise Undecided(str(error)) from error
        if isinstance(value, _Huge):
            return value
        if not self.mp.isfinite(value) or (abs(self.magnitude(value)) > self.max_magnitude and value != 0):
            raise Undecided("not finite")
        return value

    def real(self, value: Fraction) -> Any:
        return self.mp.mpf(value.numerator) / self.mp.mpf(value.denominator)

    def huge(self, op: str, arguments: list[Any]) -> Any:
        """The few rules for numbers known only to be enormous."""
        if op == "neg":
            return _Huge(-arguments[0].sign)
        if op == "add" and len({a.sign for a in arguments if isinstance(a, _Huge)}) == 1:
            return next(a for a in arguments if isinstance(a, _Huge))
        if op == "mul" and all(isinstance(a, _Huge) or (_is_real(a) and abs(a) >= 1) for a in arguments):
            return _Huge(math.prod(a.sign if isinstance(a, _Huge) else (1 if a.real > 0 else -1) for a in arguments))
        base, exponent = arguments[0], arguments[-1]
        towers = op == "pow" and isinstance(exponent, _Huge) and exponent.sign > 0 and not isinstance(base, _Huge)
        if towers and _is_real(base) and base.real >= 2:
            return _Huge(1)
        raise Undecided("too large")

    def apply(self, op: str, arguments: list[Any]) -> Any:
        mp = self.mp
        if op == "add":
            return sum(arguments, mp.zero)
        if op == "neg":
            return -arguments[0]
        if op == "mul":
            return arguments[0] * arguments[1]
        if op == "div":
            return arguments[0] / arguments[1]
        if op == "pow":
            return self.power(*arguments)
        if op == "root":
            return self.power(arguments[0], 1 / arguments[1])
        if op == "degrees":
            return arguments[0] * mp.pi / 180
        if op in {"factorial", "binom"}:
            if (
                op == "factorial"
                and self.magnitude(arguments[0]) > 60
                and _is_real(arguments[0])
                and arguments[0].real > 0
            ):
                return _Huge(1)
            self.limit(60, *arguments)
            return mp.factorial(arguments[0]) if op == "factorial" else mp.binomial(*arguments)
        if op in {"log", "log10", "ln"}:
            base = {"log": arguments[-1], "log10": mp.mpf(10), "ln": mp.e}[op]
            return mp.log(arguments[0]) / mp.log(base)
        if op in {"abs", "exp"}:
            if op == "exp":
                return self.power(mp.e + mp.zero, arguments[0])
            return abs(arguments[0])
        return self.function(op, arguments)

    def function(self, op: str, arguments: list[Any]) -> Any:
        mp = self.mp
        self.limit(100, *arguments)
        if op in {"floor", "ceil", "mod", "max", "min", "gcd", "lcm"}:
            if not all(_is_real(a) for a in arguments) or op in {"gcd", "lcm"}:
                raise Undecided(op)
            values = [a.real for a in arguments]
            if op == "mod":
                return values[0] - values[1] * mp.floor(values[0] / values[1])
            return {"floor": mp.floor, "ceil": mp.ceil, "max": max, "min": min}[op](*values)
        if op == "cis":
            return mp.expj(arguments[0])
        name = {
            "arcsin": "asin",
            "arccos": "acos",
            "arctan": "atan",
            "arccot": "acot",
            "arcsec": "asec",
            "arccsc": "acsc",
        }.get(op, op)
        return getattr(mp, name)(arguments[0])

    def limit(self, bits: int, *values: Any) -> None:
        """Functions whose cost grows with the argument refuse large ones."""
        if any(self.magnitude(value) > bits for value in values):
            raise Undecided("argument too large")

    def power(self, base: Any, exponent: Any) -> Any:
        mp = self.mp
        if base == 0:
            if _is_real(exponent) and exponent.real > 0:
                return mp.zero
            raise Undecided("0 to a power that is not positive")
        if _is_real(exponent) and _is_real(base):
            base, exponent = base.real, exponent.real
            size = abs(exponent * mp.log(abs(base), 2))
            if size > self.max_magnitude:
                grows = (abs(base) > 1) == (exponent > 0)
                if base > 0 and grows:
                    return _Huge(1)
                raise Undecided("too large")
            if base < 0 and exponent != mp.floor(exponent):
                return self.odd_root(base, exponent)
        else:
            self.limit(40, exponent)
        return mp.power(base, exponent)

    def odd_root(self, base: Any, exponent: Any) -> Any:
        """The real root of a negative number where the degree is a small odd number (the schoolbook convention)."""
        for degree in range(3, 16, 2):
            numerator = exponent * degree
            nearest = self.mp.nint(numerator)
            if abs(numerator - nearest) < self.mp.mpf(10) ** (5 - self.mp.dps):
                return (-1) ** int(nearest) * self.mp.power(-base, exponent)
        return self.mp.power(base, exponent)
