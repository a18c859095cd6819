"""Verifiable rewards: a grader that cannot hang, a pool of killable workers, and reward functions for TRL.

>>> from negpo.rewards import grade
>>> grade("So the answer is \\\\boxed{\\\\frac{1}{2}}.", "0.5").status
'correct'

The conventions of the default mode (percent, units, bases, unsimplified fractions, intervals, hedged answers) are
listed in ``docs/verifier.md``; the reference modes live in :mod:`negpo.rewards.reference`. Importing this package is
cheap: sympy and math-verify are loaded only inside worker processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negpo.rewards.functions import correctness_reward, format_reward, length_reward
    from negpo.rewards.golds import validate_gold, validate_golds
    from negpo.rewards.grader import grade
    from negpo.rewards.options import GradeOptions
    from negpo.rewards.outcome import Rewards
    from negpo.rewards.pool import VerifierPool, default_pool
    from negpo.rewards.verdict import Verdict
    from negpo.rewards.voting import vote_keys

_EXPORTS = {
    "grade": "grader", "validate_gold": "golds", "validate_golds": "golds", "Verdict": "verdict",
    "VerifierPool": "pool", "default_pool": "pool",
    "correctness_reward": "functions", "format_reward": "functions", "length_reward": "functions",
    "GradeOptions": "options", "Rewards": "outcome", "vote_keys": "voting",
}  # fmt: skip

__all__ = [
    "GradeOptions",
    "Rewards",
    "Verdict",
    "VerifierPool",
    "correctness_reward",
    "default_pool",
    "format_reward",
    "grade",
    "length_reward",
    "validate_gold",
    "validate_golds",
    "vote_keys",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'negpo.rewards' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"negpo.rewards.{_EXPORTS[name]}"), name)
