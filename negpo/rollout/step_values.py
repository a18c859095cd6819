"""Where does a wrong solution become lost? Values of its prefixes, for per-step DPO (arXiv 2406.14532).

For every prefix of a wrong solution, roll-outs from the model that wrote it estimate Q, the chance that best-of-K from
there still ends right. The first step with the lowest Q is the pit; the pair is (a full right solution, the wrong one
up to its pit), see `negpo.data.step_dpo`. UNVERIFIED in the paper and therefore options: roll-outs per prefix (ours:
2 K) and what a step is (ours: a line).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from negpo.data.preference_encode import continuation_ids
from negpo.data.step_dpo import Row, split_steps
from negpo.errors import ConfigError, DataError
from negpo.rollout.base import RolloutEngine, Sampling

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
