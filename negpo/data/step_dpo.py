"""Rows of per-step DPO (arXiv 2406.14532): a full right solution against a wrong one up to the step where it was lost.

`negpo.rollout.step_values` builds such rows from a model's own wrong solutions.
"""

from typing import Any

from negpo.data.preference import Text
from negpo.errors import DataError

Row = dict[str, Any]


def split_steps(text: str, separator: str = "\n") -> list[str]:
    """Steps whose concatenation is ``text``. Separators stay with the step they end."""
    pieces = text.split(separator)
    steps: list[str] = []
    for piece in [*(piece + separator for piece in pieces[:-1]), pieces[-1]]:
        if steps and not (piece.strip() and steps[-1].strip()):
            steps[-1] += piece
        else:
            steps.append(piece)
    return steps


def cut_at_pit(rows: Any, name: str) -> list[Row]:
    """Step rows as flat preference rows: the full right solution, and the wrong one up to its pit without an end token.

    ``pit`` is taken where given, else it is the first step with the lowest of ``values``.
    """
    flat = []
    for index, row in enumerate(rows):
        steps, pit = row.get("steps"), row.get("pit")
        if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
            raise DataError(
                "expected a list of texts, the steps of a wrong solution", file=name, row=index, field="steps"
            )
        if pit is None:
            pit = _first_lowest(row.get("values"), len(steps), name, index)
        if isinstance(pit, bool) or not isinstance(pit, int) or not 0 <= pit < len(steps):
            raise DataError(
                f"pit is {pit!r}, expected a step from 0 to {len(steps) - 1}", file=name, row=index, field="pit"
            )
        prompt, prefix, is_whole = row.get("prompt"), "".join(steps[: pit + 1]), pit == len(steps) - 1
        sides = ((1, row.get("chosen"), True), (-1, _as(prompt, prefix), is_whole))
        flat += [
            {"prompt": prompt, "completion": text, "group": index, "sign": sign, "complete": complete}
            for sign, text, complete in sides
        ]
    return flat


def _as(prompt: Text, text: str) -> Text:
    """``text`` in the form of the prompt: plain, or as the assistant's message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _first_lowest(values: Any, steps: int, name: str, row: int) -> int:
    good = isinstance(values, list) and len(values) == steps and all(isinstance(v, int | float) for v in values)
    if not good:
        raise DataError(
            f"values is {values!r}, expected one number per step ({steps})", file=name, row=row, field="values"
        )
    return min(range(steps), key=lambda i: values[i])
