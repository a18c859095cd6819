r"""Matrices, vectors and systems: environments in any brackets, ``\frac12\begin{pmatrix}...``, transposes, sums with
parameters, ``3\mathbf{i}-\mathbf{j}``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from negpo.rewards.answers import Answer, Bracketed, Collection, Matrix, Relation, Value
from negpo.rewards.expression import Node, free_symbols, number, parse_expression
from negpo.rewards.tokens import AnswerError, Token, check_brackets, is_close, is_open, split_top

MATRICES = {"pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "psmallmatrix", "bsmallmatrix", "array"}
SYSTEMS = {"aligned", "align", "cases", "gathered", "split", "alignedat", "eqnarray"}
_TRANSPOSES = {"T", "top"}
_BASIS = ("i", "j", "k")

Parse = Callable[[Sequence[Token]], Answer]


def environment(tokens: list[Token], parse: Parse) -> Answer | None:
    """A matrix or a system of relations, None for anything that is not exactly one environment."""
    name = tokens[0].value.removeprefix("begin:")
    inner = tokens[1:-1]
    if name == "array" and inner and inner[0].value == "{":  # column specification
        inner = inner[check_brackets(inner)[0] + 1 :]
    if name not in MATRICES | SYSTEMS:
        return None
    rows = [_without_rules(piece) for _, piece in split_top(inner, {"row"})]
    rows = [row for row in rows if row]
    if name in SYSTEMS and (system := _system(rows, parse)) is not None:
        return system
    return Matrix(tuple(tuple(parse(cell) for _, cell in split_top(row, {"&"})) for row in rows))


def _without_rules(row: list[Token]) -> list[Token]:
    while row and row[-1].value in {",", ";", "."} and row[-1].kind == "op":
        row = row[:-1]
    return row


def _system(rows: list[list[Token]], parse: Parse) -> Answer | None:
    """``x &= 1 \\\\ y &= 2`` as a list of relations."""
    items = [parse([token for token in row if token.value != "&"]) for row in rows]
    if items and all(isinstance(item, Relation) for item in items):
        return items[0] if len(items) == 1 else Collection(tuple(items))
    return None


def matrix_expression(tokens: list[Token], parse: Parse) -> Answer | None:
    """A sum of scalar multiples of matrices or vectors of one shape, entry by entry; None for anything else."""
    if not _mentions_matrix(tokens):
        return None
    total: list[list[Node]] | None = None
    round_brackets = True
    pieces = split_top(tokens, {"+", "-"})
    if len(pieces) > 1 and not pieces[0][1]:
        pieces = pieces[1:]  # a leading sign
    for sign, piece in pieces:
        term = _term(piece, parse)
        if term is None:
            return None
        rows, is_vector = term
        round_brackets &= is_vector
        if sign is not None and sign.value == "-":
            rows = [[Node("neg", (cell,)) for cell in row] for row in rows]
        if total is None:
            total = rows
        elif [len(row) for row in total] != [len(row) for row in rows]:
            return None
        else:
            total = [[Node("add", pair) for pair in zip(a, b, strict=True)] for a, b in zip(total, rows, strict=True)]
    if total is None:
        return None
    if round_brackets:
        return Bracketed("(", ")", tuple(Value("", row[0]) for row in total))
    return Matrix(tuple(tuple(Value("", cell) for cell in row) for row in total))


def _mentions_matrix(tokens: Sequence[Token]) -> bool:
    if any(token.value.startswith("begin:") for token in tokens):
        return True
    return any(token.value == "," and token.kind == "op" for token in tokens) and any(
        token.value in {"(", "langle", "["} for token in tokens
    )


def _term(tokens: list[Token], parse: Parse) -> tuple[list[list[Node]], bool] | None:
    """Entries of ``scalar * matrix``, ``matrix^T`` or ``matrix / scalar``; and whether it is a vector in brackets."""
    start = next((i for i, t in enumerate(tokens) if t.value.startswith("begin:")), None)
    vector = start is None
    if start is None:
        start = next((i for i, t in enumerate(tokens) if t.value in {"(", "[", "langle"} and _is_list(tokens, i)), None)
    if start is None:
        return None
    while start and tokens[start - 1].value in {"[", "("} and not vector:
        start -= 1
    try:
        end = check_brackets(tokens)[start] + 1
        body = parse(tokens[start:end])
        factor = _scalar(tokens[:start], bare=not vector)
        transposed, divisor = _suffix(tokens[end:])
    except AnswerError:
        return None
    rows = _entries(body)
    if rows is None:
        return None
    if transposed:
        rows = [list(column) for column in zip(*rows, strict=True)]
    if vector and (factor is None or (factor == number(1) and divisor is None and not transposed)) and start:
        return None
    scaled = [[_times(factor, cell) for cell in row] for row in rows]
    if divisor is not None:
        scaled = [[Node("div", (cell, divisor)) for cell in row] for row in scaled]
    # A transposed row vector is a column; a row in brackets is written as a vector.
    return scaled, vector and not transposed


def _is_list(tokens: Sequence[Token], start: int) -> bool:
    """Whether the bracket at ``start`` holds a list."""
    depth = 0
    for token in tokens[start:]:
        depth += is_open(token) - is_close(token)
        if depth == 1 and token.value == "," and token.kind == "op":
            return True
        if depth == 0:
            return False
    return False


def _scalar(tokens: list[Token], *, bare: bool) -> Node | None:
    """The factor in front. In front of plain brackets a letter may be a function or the name of a point."""
    if tokens and tokens[-1].value == "*":
        tokens, bare = tokens[:-1], True
    if not tokens:
        return number(1)
    if not bare and (tokens[-1].kind == "cmd" or (tokens[-1].kind == "sym" and tokens[-1].value in "fghFGHPQRABC")):
        return None
    return parse_expression(tokens)


def _suffix(tokens: list[Token]) -> tuple[bool, Node | None]:
    """Whether a transpose stands behind, and a divisor.

    Raises:
        AnswerError: something else stands there.
    """
    transposed = False
    if len(tokens) >= 2 and tokens[0].value == "^":
        group = [token for token in tokens[1:] if token.value not in {"{", "}"}]
        if not group or group[0].value not in _TRANSPOSES:
            raise AnswerError("not a transpose")
        used = next(i for i, token in enumerate(tokens) if token is group[0]) + 1
        while used < len(tokens) and tokens[used].value == "}":
            used += 1
        transposed, tokens = True, tokens[used:]
    if not tokens:
        return transposed, None
    if tokens[0].value == "/":
        return transposed, parse_expression(tokens[1:])
    if tokens[0].value == "*":
        return transposed, Node("div", (number(1), parse_expression(tokens[1:])))
    raise AnswerError("not a scalar multiple")


def _entries(answer: Answer) -> list[list[Node]] | None:
    if isinstance(answer, Matrix):
        rows = [list(row) for row in answer.rows]
    elif isinstance(answer, Bracketed) and answer.left + answer.right in ("()", "[]"):
        rows = [[item] for item in answer.items]  # any other pair is an interval
    else:
        return None
    nodes = [[cell.node if isinstance(cell, Value) and not cell.unit else None for cell in row] for row in rows]
    if any(node is None for row in nodes for node in row) or len({len(row) for row in nodes}) != 1:
        return None
    return nodes  # type: ignore[return-value]


def _times(factor: Node | None, cell: Node) -> Node:
    return cell if factor is None or factor == number(1) else Node("mul", (factor, cell))


# -- unit vectors ------------------------------------------------------------------------------------------------------


def as_vector(value: Value, length: int) -> tuple[Value, ...] | None:
    """Components of ``2i - 3j + k`` (bold, with hats, or plain where j or k appears), None if it is no such sum."""
    if value.node is None or value.unit or length not in {2, 3}:
        return None
    symbols = free_symbols(value.node)
    bold = any(name.startswith("basis:") for name in symbols)
    if not bold and not symbols & {"j", "k"}:
        return None
    names = [f"basis:{letter}" if bold else letter for letter in _BASIS]
    parts = _linear(value.node, names)
    if (
        parts is None
        or (length == 2 and names[2] in parts)
        or (set(names[:2]) - symbols and len(parts) < 2 and not bold)
    ):
        return None
    return tuple(Value("", parts.get(name, number(0))) for name in names[:length])


def _linear(node: Node, names: list[str]) -> dict[str, Node] | None:
    """Coefficients of a sum in which every term has exactly one of the names as a factor."""
    if node.op in {"sym", "const"}:
        return {str(node.value): number(1)} if node.value in names else None
    if node.op == "neg":
        inner = _linear(node.args[0], names)
        return inner and {name: Node("neg", (part,)) for name, part in inner.items()}
    if node.op == "add":
        total: dict[str, Node] = {}
        for arg in node.args:
            inner = _linear(arg, names)
            if inner is None:
                return None
            for name, part in inner.items():
                total[name] = Node("add", (total[name], part)) if name in total else part
        return total
    if node.op in {"mul", "div"}:
        left, right = node.args
        inner = _linear(left, names)
        if inner is not None and not _mentions(right, names):
            return {name: Node(node.op, (part, right)) for name, part in inner.items()}
        inner = _linear(right, names) if node.op == "mul" else None
        if inner is not None and not _mentions(left, names):
            return {name: Node("mul", (left, part)) for name, part in inner.items()}
    return None


def _mentions(node: Node, names: list[str]) -> bool:
    return (node.op in {"sym", "const"} and node.value in names) or any(_mentions(arg, names) for arg in node.args)
