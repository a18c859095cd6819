"""Pairs for per-step DPO (arXiv 2406.14532): where does a wrong solution become lost?

For every prefix of a wrong solution, roll-outs from the model that wrote it estimate Q, the chance that best-of-K from
there still ends right. The first step with the lowest Q is the pit; the pair is (a full right solution, the wrong one
up to its pit). UNVERIFIED in the paper and therefore options: roll-outs per prefix (ours: 2 K) and what a step is
(ours: a line).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from negpo.data.preference import Text
from negpo.data.preference_encode import continuation_ids
from negpo.errors import ConfigError, DataError
from negpo.rollout import RolloutEngine, Sampling

Row = dict[str, Any]
# (whole response, gold answer) of many responses -> right, wrong, or None where it cannot be decided
Grader = Callable[[Sequence[tuple[str, str]]], Sequence[bool | None]]


@dataclass(frozen=True)
class StepSettings:
    """``best_of`` is the paper's K = 5. ``separator`` ends a step; an empty line belongs to the step before it."""

    best_of: int = 5
    rollouts: int = 10
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    max_wrong: int = 8
    separator: str = "\n"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_wrong < 1 or not self.separator:
            raise ConfigError(
                f"max_wrong is {self.max_wrong}, separator {self.separator!r}; give at least 1, and a text"
            )
        if not 1 <= self.best_of <= self.rollouts:
            raise ConfigError(
                f"best_of is {self.best_of} and rollouts {self.rollouts}; best-of-K needs K roll-outs or more"
            )

    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            n=self.rollouts,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            logprobs=False,
        )


@dataclass
class StepReport:
    """Pairs built, prefixes valued, and what was left out, by name."""

    pairs: int = 0
    prefixes: int = 0
    dropped: Counter = field(default_factory=Counter)

    def rows(self) -> list[tuple[str, int]]:
        """(what, how many) for a table."""
        made = [("prefixes valued", self.prefixes), ("pairs", self.pairs)]
        return made + [(f"dropped: {name}", count) for name, count in sorted(self.dropped.items())]


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


def best_of_value(right: int, rollouts: int, best_of: int) -> float:
    """Unbiased estimate of the chance that one of ``best_of`` answers is right, from ``right`` of ``rollouts``."""
    return 1.0 - math.comb(rollouts - right, best_of) / math.comb(rollouts, best_of)


def build_step_rows(
    rows: Sequence[Row], engine: RolloutEngine, tokenizer: Any, grade: Grader, settings: StepSettings | None = None
) -> tuple[list[Row], StepReport]:
    """Rows for ``StepDPOTrainer``: ``prompt``, ``chosen``, ``steps`` and ``values`` (Q after each step).

    ``rows`` hold ``prompt``, ``gold`` and graded solutions ``right`` (as the prompt: texts or conversations) and
    ``wrong`` (texts), perhaps ``id``, which names the row for the random numbers (default: its position). Every wrong
    solution (at most ``max_wrong`` per prompt) is paired with a right one, in turn; what lies beyond is counted.

    Raises:
        DataError: a row lacks a field.
    """
    settings = settings or StepSettings()
    report, out = StepReport(), []
    for index, row in enumerate(rows):
        if missing := [name for name in ("prompt", "gold", "right", "wrong") if name not in row]:
            raise DataError("the field is missing", file="rows", row=index, field=missing[0])
        if not row["right"] or not row["wrong"]:
            report.dropped["prompts without a right or without a wrong solution"] += 1
            continue
        if surplus := max(0, len(row["wrong"]) - settings.max_wrong):
            report.dropped[f"wrong solutions beyond {settings.max_wrong} of a prompt"] += surplus
        for place, wrong in enumerate(row["wrong"][: settings.max_wrong]):
            if not wrong.strip():
                report.dropped["wrong solutions without text"] += 1
                continue
            steps = split_steps(wrong, settings.separator)
            values = _values(row, steps, f"{row.get('id', index)}/{place}", engine, tokenizer, grade, settings)
            report.prefixes += len(steps)
            if values is None:
                report.dropped["wrong solutions with a prefix whose roll-outs could not be graded"] += 1
                continue
            chosen = row["right"][place % len(row["right"])]
            out.append({"prompt": row["prompt"], "chosen": chosen, "steps": steps, "values": values})
    report.pairs = len(out)
    return out, report


def _values(row: Row, steps: list[str], key: str, engine, tokenizer, grade: Grader, settings) -> list[float] | None:
    """Q after each step; the whole wrong solution is known to be worth 0. None where a prefix has too few grades."""
    prefixes = ["".join(steps[: i + 1]) for i in range(len(steps) - 1)]
    if not prefixes:
        return [0.0]
    asked = [continuation_ids(tokenizer, row["prompt"], prefix) for prefix in prefixes]
    drawn = engine.generate(asked, settings.sampling(), prompt_keys=[f"{key}/{i}" for i in range(len(asked))])
    texts = [
        (prefix + tokenizer.decode(sample.token_ids, skip_special_tokens=True), row["gold"])
        for prefix, samples in zip(prefixes, drawn, strict=True)
        for sample in samples
    ]
    grades = iter(grade(texts))
    values = []
    for samples in drawn:
        known = [verdict for verdict in (next(grades) for _ in samples) if verdict is not None]
        if len(known) < settings.best_of:
            return None
        values.append(best_of_value(sum(known), len(known), settings.best_of))
    return [*values, 0.0]


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
