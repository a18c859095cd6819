"""Gold answers are checked once, when the data arrives, with row numbers: one that cannot be read must not end a run at
step 7, nor count every answer to its question as wrong.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negpo.errors import DataError
from negpo.rewards import countdown
from negpo.rewards.answers import answer_kind, readable
from negpo.rewards.decide import Gold, check_mode, gold_readings, gold_text, is_task
from negpo.rewards.pool import VerifierPool, default_pool

logger = logging.getLogger(__name__)

_SHOWN = 5  # bad rows that a message quotes


@dataclass(frozen=True)
class BadGold:
    """A gold answer that cannot be used: its row (counted from 0), the value, and why."""

    row: int
    gold: Any
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"


@dataclass(frozen=True)
class GoldReport:
    """What :func:`validate_golds` found: indices of the usable rows in order, the bad ones, and how many answers of
    each kind there are (``{"integer": 400, "set": 12}``; empty for reference modes, which have no kinds).
    """

    kept: list[int]
    bad: list[BadGold]
    kinds: Counter[str]


def validate_golds(
    rows: Iterable[Mapping[str, Any] | Gold | None],
    *,
    column: str = "answer",
    kind: str | None = None,
    kind_column: str | None = None,
    mode: str = "default",
    skip_bad_golds: bool = False,
    source: str | None = None,
    pool: VerifierPool | None = None,
) -> GoldReport:
    """Checks all golds of a data set at once. ``0`` is a gold like any other; None, blank text, NaN, truth values and
    lists are not.

    Args:
        rows: mappings with the gold under ``column`` (and its kind under ``kind_column``), or the golds themselves.
        kind: one kind for all rows. mode: with a reference mode a gold only has to be text or a number.
        skip_bad_golds: leave bad rows out of ``kept`` and log how many there are, instead of raising.
        source: file or data set, for messages. pool: workers for what only math-verify can read.

    Raises:
        DataError: bad golds without ``skip_bad_golds``, no row left with it, or a row without the column.
        ConfigError: unknown kind or mode.
    """
    check_mode(kind, mode)
    bad: list[BadGold] = []
    kinds: dict[int, str] = {}
    undecided: dict[int, str] = {}
    count = 0
    for count, row in enumerate(rows, start=1):
        gold, row_kind = _gold_of(row, count - 1, column, kind, kind_column, source)
        try:
            kinds[count - 1], known = _check(gold, row_kind, mode)
            if not known:
                undecided[count - 1] = gold_text(gold)
        except DataError as error:
            bad.append(BadGold(count - 1, gold, _reason(error)))
    bad += _unreadable(undecided, pool)
    bad.sort(key=lambda entry: entry.row)
    refused = {entry.row for entry in bad}
    kept = [index for index in range(count) if index not in refused]
    _complain(bad, count, column, skip_bad_golds, source)
    return GoldReport(kept, bad, Counter(kinds[index] for index in kept if kinds[index]))


def validate_gold(
    gold: Gold, kind: str | None = None, *, is_readable: Callable[[str], bool | None] | None = None
) -> str:
    """Checks one gold answer and returns its kind.

    ``is_readable(latex)`` decides about values the small parser does not know; by default a worker asks math-verify.

    Raises:
        DataError: naming the gold answer that cannot be read.
    """
    check_mode(kind, "default")
    found, known = _check(gold, kind, "default")
    if not known:
        latex = gold_text(gold)
        verdict = is_readable(latex) if is_readable else default_pool().readable([latex])[0]
        if not verdict:
            raise DataError(f"the gold answer {_why_unreadable(latex, verdict)}", field="answer")
    return found


def _gold_of(
    row: Any, index: int, column: str, kind: str | None, kind_column: str | None, source: str | None
) -> tuple[Any, str | None]:
    if not isinstance(row, Mapping):
        return row, kind
    for name in (column, kind_column):
        if name is not None and name not in row:
            columns = ", ".join(map(str, row)) or "none"
            raise DataError(f"no column '{name}' (columns: {columns})", file=source, row=index, field=name)
    return row[column], row[kind_column] if kind_column else kind


def _check(gold: Any, kind: str | None, mode: str) -> tuple[str, bool]:
    """The kind of a gold and whether it is fully understood; raises DataError for what cannot be a gold."""
    if gold is None or (isinstance(gold, str) and not gold.strip()):
        raise DataError(f"the gold answer {gold!r} is missing", field="answer")
    text = gold_text(gold)
    if mode != "default":
        return "", True
    check_mode(kind, mode)
    if is_task(text, kind):
        countdown.read_gold(text)
        return countdown.KIND, True
    answer = gold_readings(text, kind)[0].answer
    return answer_kind(answer), readable(answer)


def _unreadable(undecided: Mapping[int, str], pool: VerifierPool | None) -> list[BadGold]:
    """The golds that math-verify cannot read either."""
    if not undecided:
        return []
    verdicts = (pool or default_pool()).readable(list(undecided.values()))
    return [
        BadGold(row, latex, f"the gold answer {_why_unreadable(latex, verdict)}")
        for (row, latex), verdict in zip(undecided.items(), verdicts, strict=True)
        if not verdict
    ]


def _why_unreadable(latex: str, verdict: bool | None) -> str:
    why = "cannot be read as LaTeX" if verdict is False else "could not be read within the verifier's time limit"
    return f"{latex[:80]!r} {why}"


def _reason(error: DataError) -> str:
    return str(error).removeprefix("field 'answer': ")


def _complain(bad: Sequence[BadGold], count: int, column: str, skip: bool, source: str | None) -> None:
    if not bad:
        return
    shown = "; ".join(map(str, bad[:_SHOWN])) + ("; ..." if len(bad) > _SHOWN else "")
    found = f"{len(bad)} of {count} gold answers cannot be graded: {shown}"
    if skip and len(bad) < count:
        logger.warning("%s. Their rows are left out (skip_bad_golds)", found)
        return
    advice = "no row is left" if skip else "Mend them, or leave their rows out with skip_bad_golds"
    raise DataError(f"{found}. {advice}", file=source, row=bad[0].row, field=column)
