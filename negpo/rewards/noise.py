"""A verifier that errs on purpose: right answers called wrong and wrong ones called right, at known rates.

Errors depend on the question, the answer and a seed, and on nothing else. So the same answer to the same question gets
the same verdict in every group, step and run, as it would from a verifier whose mistakes have reasons, and a policy can
learn to exploit them. Unknown verdicts stay unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from negpo.errors import ConfigError
from negpo.rewards.outcome import Rewards
from negpo.rewards.verdict import Verdict


def with_verifier_errors(
    reward: Callable[..., Rewards],
    *,
    false_positives: float = 0.0,
    false_negatives: float = 0.0,
    seed: int = 0,
    correct: float = 1.0,
    wrong: float = 0.0,
    answer_column: str = "answer",
) -> Callable[..., Rewards]:
    """The reward function `reward` (of :func:`negpo.rewards.correctness_reward`, not asynchronous) with errors.

    Args:
        false_positives: share of wrong answers that are called right, by content. false_negatives: share of right
            answers that are called wrong. seed: other seeds err on other answers.
        correct, wrong: values of the rewards, as `reward` gives them. answer_column: gold answers, part of the content.

    Raises:
        ConfigError: a rate outside [0, 1].
    """
    for name, rate in (("false_positives", false_positives), ("false_negatives", false_negatives)):
        if not 0 <= rate <= 1:
            raise ConfigError(f"{name}={rate} is a share of the verdicts, between 0 and 1")
    values = {"correct": correct, "wrong": wrong, "unknown": None}

    def erring(prompts: Any = None, completions: Any = (), completion_ids: Any = None, **columns: Any) -> Rewards:
        found = reward(prompts, completions, completion_ids, **columns)
        asked = prompts if prompts is not None else [""] * len(completions)
        contents = zip(asked, columns.get(answer_column, asked), completions, strict=True)
        verdicts = [
            _err(verdict, unit_hash(seed, *map(str, content)), false_positives, false_negatives)
            for verdict, content in zip(found.verdicts, contents, strict=True)
        ]
        return Rewards([values[verdict.status] for verdict in verdicts], verdicts, found.masked)

    vars(erring).update(vars(reward))  # role, and validate, which checks the golds
    erring.__name__ = erring.__qualname__ = reward.__name__
    return erring


def _err(verdict: Verdict, draw: float, false_positives: float, false_negatives: float) -> Verdict:
    if verdict.status == "wrong" and draw < false_positives:
        return replace(verdict, status="correct", reason=f"called right by mistake: {verdict.reason}")
    if verdict.status == "correct" and draw < false_negatives:
        return replace(verdict, status="wrong", reason=f"called wrong by mistake: {verdict.reason}")
    return verdict


def unit_hash(seed: int, *contents: str) -> float:
    """A number in [0, 1) that depends on its arguments alone, uniform over contents."""
    digest = hashlib.blake2b("\x1f".join((str(seed), *contents)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
