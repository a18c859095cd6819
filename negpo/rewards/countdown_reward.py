"""Countdown as a reward function for data with numbers and target in columns of their own."""

from __future__ import annotations

from typing import Any

from negpo.errors import DataError
from negpo.rewards.countdown import Task
from negpo.rewards.functions import correctness_reward


def countdown_reward(
    *, correct: float = 1.0, wrong: float = 0.0, numbers_column: str = "nums", target_column: str = "target"
) -> Any:
    """A reward function in TRL's signature for data with numbers and target in columns of their own (TinyZero's names).

    With gold answers of the form ``24 from 3, 5, 7`` use :func:`negpo.rewards.correctness_reward`, which knows them.

    Raises:
        DataError: (when called) a column is missing or holds no task.
    """
    inner = correctness_reward(correct=correct, wrong=wrong)

    def countdown(prompts: Any = None, completions: Any = (), completion_ids: Any = None, **columns: Any) -> Any:
        if missing := [name for name in (numbers_column, target_column) if name not in columns]:
            raise DataError(f"no column '{missing[0]}' (columns: {', '.join(sorted(columns))})", field=missing[0])
        rows = zip(columns[numbers_column], columns[target_column], strict=True)
        golds = [Task(tuple(map(int, numbers)), int(target)).gold for numbers, target in rows]
        return inner(prompts, completions, completion_ids, **{**columns, "answer": golds})

    countdown.role = "verdict"  # type: ignore[attr-defined]
    return countdown
