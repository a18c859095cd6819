r"""A small parser for the closed-form expressions that appear as answers.

``parse_expression`` turns tokens into a tree of :class:`Node` or raises :class:`~negpo.rewards.tokens.AnswerError`; it
never guesses and never drops a token, because a dropped token is how graders come to reward wrong answers. Sums,
integrals, limits and user-defined operators are not covered: those go to math-verify in a worker process.

Conventions: ``1\frac{1}{2}`` is a mixed number, ``\frac43`` is 4/3, ``2^10`` is 2 to the tenth, ``\sin 2x`` takes the
whole product, ``\log`` without a base is base 10, ``i`` is the imaginary unit, ``e`` Euler's number, letters are
case-sensitive.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from negpo.rewards.tokens import AnswerError, Token, render
from negpo.rewards.vocabulary import FUNCTIONS

MAX_TOKENS = 1500
MAX_DEPTH = 90
MAX_DIGITS = 4000  # Python refuses to convert longer integers to text and back

_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec", "csc": "arccsc"}
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "rho",
    "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Sigma",
    "Phi", "Psi",
    "Omega", "ell", "hbar",
}  # fmt: skip
_DECORATED = {
    "overline",
    "bar",
    "vec",
    "hat",
    "tilde",
    "widehat",
    "overrightarrow",
    "overleftrightarrow",
    "angle",
    "triangle",
}


@dataclass(frozen=True, slots=True)
class Node:
    """``op`` with ``args``; leaves carry ``value`` (a Fraction for ``num``, a name for ``sym`` and ``const``)."""

    op: str
    args: tuple[Node, ...] = ()
    value: Fraction | str | None = None


_D = Node("sym", value="d")  # the d of a differential operator


def number(value: int | Fraction) -> Node:
    return Node("num", value=Fraction(value))


def free_symbols(node: Node) -> set[str]:
    """Names of the variables in a tree."""
    if node.op == "sym":
        return {str(node.value)}
    return set().union(*(free_symbols(arg) for arg in node.args)) if node.args else set()


def contains(node: Node, ops: set[str]) -> bool:
    return node.op in ops or any(contains(arg, ops) for arg in node.args)


def parse_expression(tokens: Sequence[Token]) -> Node:
    """The tree of a whole token list.

    Raises:
        AnswerError: the tokens are not one closed-form expression, or exceed the size limits.
    """
    if not tokens:
        raise AnswerError("empty expression")
    if len(tokens) > MAX_TOKENS:
        raise AnswerError(f"expression of {len(tokens)} tokens, limit {MAX_TOKENS}")
    parser = _Parser(tokens)
    tree = parser.group()
    if parser.position < len(tokens):
        raise AnswerError(f"unexpected '{tokens[parser.position].value}' in '{render(tokens)[:60]}'")
    return tree


class _Parser:
    def __init__(self, tokens: Sequence[Token]):
        self.tokens, self.position, self.depth = tokens, 0, 0
        self.bars = 0  # open absolute-value bars: inside them a bar closes, it does not open

    # -- token access -------------------------------------------------------------------------------------------------
    def peek(self, ahead: int = 0) -> Token:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else Token("end", "")

    def take(self, value: str) -> bool:
        if self.peek().kind not in {"end", "word"} and self.peek().value == value:
            self.position += 1
            return True
        return False

    def expect(self, value: str) -> None:
        if not self.take(value):
            raise AnswerError(f"expected '{value}', found '{self.peek().value or 'the end'}'")

    # -- grammar ------------------------------------------------------------------------------------------------------
    def group(self) -> Node:
        r"""The content of brackets: a sum, or TeX's ``n \choose k``."""
        inner = self.sum()
        return Node("binom", (inner, self.sum())) if self.take("choose") else inner

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise AnswerError(f"nested deeper than {MAX_DEPTH}")
        terms = [self.product()]
        while self.peek().kind == "op" and self.peek().value in {"+", "-"}:
            negative = self.peek().value == "-"
            self.position += 1
            term = self.product()
            terms.append(Node("neg", (term,)) if negative else term)
        self.depth -= 1
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def product(self) -> Node:
        result = self.signed()
        while True:
            token = self.peek()
            if token.value in {"*", "/"} and token.kind == "op":
                self.position += 1
                right = self.signed()
                result = Node("mul" if token.value == "*" else "div", (result, right))
            elif token.value == "bmod" and token.kind == "cmd":
                self.position += 1
                result = Node("mod", (result, self.signed()))
            elif self.starts_factor():
                # 2 3 is not a product: two numbers side by side mean something else or nothing.
                if token.kind == "num" and self.tokens[self.position - 1].kind == "num":
                    raise AnswerError(f"two numbers side by side: '{render(self.tokens)[:60]}'")
                result = Node("mul", (result, self.power()))
            else:
                return result

    def signed(self) -> Node:
        negative = False
        while self.peek().kind == "op" and self.peek().value in {"+", "-"}:
            negative ^= self.peek().value == "-"
            self.position += 1
        inner = self.power()
        return Node("neg", (inner,)) if negative else inner

    def power(self) -> Node:
        base = self.postfix()
        if not self.take("^"):
            return base
        result = Node("pow", (base, self.exponent()))
        return self.trailing(result)

    def exponent(self) -> Node:
        if self.peek().kind == "op" and self.peek().value in {"+", "-"}:
            negative = self.peek().value == "-"
            self.position += 1
            inner = self.power()
            return Node("neg", (inner,)) if negative else inner
        base = self.argument(split_digits=False)
        return Node("pow", (base, self.exponent())) if self.take("^") else base

    def postfix(self) -> Node:
        return self.trailing(self.primary())

    def trailing(self, result: Node) -> Node:
        """Factorials, degree and percent signs behind a factor."""
        while self.peek().kind in {"op", "cmd"}:
            if self.take("!"):
                result = Node("factorial", (result,))
            elif self.take("deg"):
                result = Node("degrees", (result,))
            elif self.take("%"):
                result = Node("div", (result, number(100)))
            else:
                return result
        return result

    def starts_factor(self) -> bool:
        token = self.peek()
        if token.kind in {"num", "sym"}:
            return True
        if token.kind == "op":
            return token.value in {"(", "[", "{"} or (token.value == "|" and not self.bars)
        return token.kind == "cmd" and (
            token.value in FUNCTIONS | _GREEK | _DECORATED
            or token.value in {"frac", "sqrt", "binom", "pi", "infty", "lfloor", "lceil", "mathbb:"}
            or token.value.startswith(("basis:", "fn:"))
        )

    def primary(self) -> Node:
        token = self.peek()
        self.position += 1
        if token.kind == "num":
            return self.numeral(token.value)
        if token.kind == "sym":
            return self.symbol(token.value)
        if token.kind == "op" and token.value in {"(", "[", "{"}:
            inner = self.group()
            closing = {"(": ")", "[": "]", "{": "}"}[token.value]
            self.expect(closing)
            return inner
        if token.kind == "op" and token.value == "|":
            self.bars += 1
            inner = self.sum()
            self.bars -= 1
            self.expect("|")
            return Node("abs", (inner,))
        if token.kind == "cmd":
            return self.command(token.value)
        raise AnswerError(f"unexpected '{token.value or 'end'}'")

    def numeral(self, text: str) -> Node:
        if len(text) > MAX_DIGITS:
            raise AnswerError(f"a number of {len(text)} digits, limit {MAX_DIGITS}")
        barred = self.peek(1) if self.peek().value == "." else self.peek()
        if barred.kind == "cmd" and barred.value in {"overline", "bar"}:
            return number(self.repeating(text))
        value = Fraction(text)
        if self.peek().value.lower() == "e" and self.peek().kind == "sym" and not self.peek().space:
            scaled = self.scientific(value)
            if scaled is not None:
                return scaled
        return Node("add", (number(value), self.fraction_part())) if self.is_mixed(value) else number(value)

    def repeating(self, text: str) -> Fraction:
        r"""0.1\overline{6} and 0.\overline{3}: the barred digits repeat for ever."""
        self.take(".")
        self.position += 1
        period = "".join(token.value for token in self.group_tokens())
        if not re.fullmatch(r"\d{1,60}", period):
            raise AnswerError(f"repeating part '{period}' is not made of digits")
        decimals = len(text.partition(".")[2])
        return Fraction(text) + Fraction(int(period), (10 ** len(period) - 1) * 10**decimals)

    def group_tokens(self) -> list[Token]:
        """The plain tokens of a brace group that contains no further group, or one token."""
        if not self.take("{"):
            self.position += 1
            return [self.tokens[self.position - 1]] if self.position <= len(self.tokens) else []
        start = self.position
        while self.peek().kind != "end" and self.peek().value not in {"{", "}"}:
            self.position += 1
        group = list(self.tokens[start : self.position])
        self.expect("}")
        return group

    def scientific(self, value: Fraction) -> Node | None:
        """1e3 and 1.5e-7: an e glued to a number and followed by glued digits."""
        sign = self.peek(1).value if self.peek(1).value in {"+", "-"} else ""
        digits = self.peek(2 if sign else 1)
        if digits.kind != "num" or digits.space or not digits.value.isdigit() or len(digits.value) > 3:
            return None
        self.position += 3 if sign else 2
        return number(value * Fraction(10) ** int(sign + digits.value))

    def is_mixed(self, value: Fraction) -> bool:
        """A whole number directly followed by a proper fraction of whole numbers is a mixed number."""
        if value.denominator != 1 or "." in self.tokens[self.position - 1].value:
            return False
        saved = self.position
        try:
            part = self.fraction_part()
        except AnswerError:
            return False
        finally:
            self.position = saved
        top, bottom = (arg.value for arg in part.args)
        if not (isinstance(top, Fraction) and isinstance(bottom, Fraction) and top > 0):
            return False
        if top >= bottom > 0:
            raise AnswerError("a whole number beside an improper fraction is neither a sum nor a product")
        return top < bottom

    def fraction_part(self) -> Node:
        if self.take("frac"):
            return Node("div", (self.argument(), self.argument()))
        top, slash, bottom = self.peek(), self.peek(1), self.peek(2)
        if top.kind == "num" and top.space and slash.value == "/" and bottom.kind == "num":
            self.position += 3
            return Node("div", (number(Fraction(top.value)), number(Fraction(bottom.value))))
        raise AnswerError("no fraction here")

    def symbol(self, name: str) -> Node:
        if self.take("_"):
            name += "_" + self.subscript()
        while self.take("'"):
            name += "'"
        if name in {"e", "i"}:
            return Node("const", value=name)
        if name[0] in "fgh" or self.at_zero_group():
            return self.unknown_function(name)
        return Node("sym", value=name)

    def at_zero_group(self) -> bool:
        """Whether ``(0)`` follows at once: I(0) is a value of I. Read as a product it would make everything zero."""
        return [self.peek(i).value for i in range(3)] == ["(", "0", ")"] and not self.peek().space

    def unknown_function(self, name: str) -> Node:
        """An unknown function stands for itself: f(2) is a name, not f times 2."""
        if self.peek().value == "(":
            start = self.position
            self.position += 1
            self.sum()
            self.expect(")")
            name += "".join(token.value for token in self.tokens[start : self.position])
        return Node("sym", value=name)

    def subscript(self) -> str:
        return "".join(token.value for token in self.group_tokens())

    def argument(self, *, split_digits: bool = True) -> Node:
        """One LaTeX argument: a brace group or a single token, of a number its first digit (``\\frac43``)."""
        token = self.peek()
        if token.kind == "op" and token.value == "{":
            self.position += 1
            inner = self.sum()
            self.expect("}")
            return inner
        if token.kind == "num" and split_digits and len(token.value) > 1:
            if not token.value.isdigit():
                raise AnswerError(f"ambiguous argument '{token.value}'")
            self.tokens = [*self.tokens[: self.position], Token("num", token.value[0]), Token("num", token.value[1:]),
                           *self.tokens[self.position + 1 :]]  # fmt: skip
        if token.kind == "end" or token.value in {"}", ")", "]", "^", "_"}:
            raise AnswerError("an argument is missing")
        return self.postfix() if token.value == "-" else self.primary()

    def command(self, name: str) -> Node:
        if name in {"pi", "infty"}:
            return Node("const", value=name)
        if name in _GREEK:
            return self.symbol(name)
        if name.startswith("basis:"):
            return Node("sym", value=name)
        if name.startswith("fn:"):
            return self.unknown_function(name)
        if name in _DECORATED:
            return Node("sym", value=f"{name} " + "".join(token.value for token in self.group_tokens()))
        if name == "frac":
            top, bottom = self.argument(), self.argument()
            if top == _D and bottom.op == "mul" and bottom.args[0] == _D:
                raise AnswerError("a derivative is not a closed form")
            return Node("div", (top, bottom))
        if name == "binom":
            return Node("binom", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name in {"lfloor", "lceil"}:
            inner = self.sum()
            self.expect("r" + name[1:])
            return Node("floor" if name == "lfloor" else "ceil", (inner,))
        if name in FUNCTIONS:
            return self.function(name)
        raise AnswerError(f"'\\{name}' is not understood here")

    def root(self) -> Node:
        degree = None
        if self.peek().value == "[":
            self.position += 1
            degree = self.sum()
            self.expect("]")
        radicand = self.argument(split_digits=False)
        return Node("root", (radicand, degree or number(2)))

    def function(self, name: str) -> Node:
        base = exponent = None
        if name == "log" and self.take("_"):
            base = self.argument()
        if self.take("^"):
            exponent = self.exponent()
            if name in _INVERSE and exponent == Node("neg", (number(1),)):
                name, exponent = _INVERSE[name], None
        arguments = self.function_arguments()
        if name == "log":
            result = Node("log", (arguments[0], base or number(10)))
        else:
            result = Node({"lg": "log10"}.get(name, name), arguments)
        if name not in {"gcd", "lcm", "max", "min"} and len(arguments) != 1:
            raise AnswerError(f"{name} takes one argument, found {len(arguments)}")
        return result if exponent is None else Node("pow", (result, exponent))

    def function_arguments(self) -> tuple[Node, ...]:
        if self.peek().value in {"(", "{", "["} and self.peek().kind == "op":
            closing = {"(": ")", "{": "}", "[": "]"}[self.peek().value]
            self.position += 1
            arguments = [self.sum()]
            while self.take(","):
                arguments.append(self.sum())
            self.expect(closing)
            return tuple(arguments)
        result = self.power()
        while self.starts_factor() and self.peek().value not in FUNCTIONS | {"(", "["}:
            result = Node("mul", (result, self.power()))
        return (result,)
