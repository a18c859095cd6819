"""Right, wrong or unknown: labels come from the verifier's verdict, and what becomes of answers that were cut off.

A reward is a sum: of a verdict, a penalty for length, a bonus for form. A label read off that sum turns a right answer
into a negative sample once its penalty is large enough. Labels are therefore taken from the functions that judge
(``role == "verdict"``, ``negpo.rewards.correctness_reward``), else from the sum of all that do not merely shape.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from negpo.errors import ConfigError, TrainingStopped
from negpo.rewards.outcome import CUT_COLUMN, cut_off
from negpo.trainers._policy.rewards import GuardedReward

MOSTLY = 0.99  # of the rewards of a rollout


def role_of(function: Any) -> str:
    """ "verdict", "shaping", or "" for functions that do not say."""
    inner = function.function if isinstance(function, GuardedReward) else function
    return getattr(inner, "role", "")


def check_truncated_roles(functions: Sequence[Any], truncated: str) -> None:
    """ConfigError when a reward function was told another rule for cut answers than the trainer."""
    for function in functions:
        inner = function.function if isinstance(function, GuardedReward) else function
        told = getattr(inner, "truncated", None)
        if told is not None and told != truncated:
            raise ConfigError(
                f"truncated={truncated} in the config, but {getattr(inner, '__name__', 'a reward function')} was made "
                f"with truncated={told!r}. Set both alike, or leave it out of the function: it then follows the config"
            )


def cut_columns(completion_ids: Sequence[Sequence[int]], args: Any, eos_token_ids: Sequence[int]) -> dict[str, list]:
    """Columns by which reward functions learn which completions the length limit cut, and what to make of them."""
    cut = cut_off(completion_ids, args.max_completion_length, eos_token_ids)
    return {CUT_COLUMN: cut, "truncated_policy": [args.truncated] * len(cut)}


def local_labels(functions: Sequence[Any], count: int) -> Tensor | None:
    """(N,) labels of this process's rows by the functions that judge: 1 right, -1 wrong, NaN unknown. None: none does.

    Several judges must agree: one that says wrong makes it wrong, else one that does not know makes it unknown.
    """
    judges = [
        function for function in functions if isinstance(function, GuardedReward) and role_of(function) == "verdict"
    ]
    if not judges:
        return None
    rows = [judge.labels if judge.labels is not None else [None] * count for judge in judges]
    return torch.tensor([_all_of(values) for values in zip(*rows, strict=True)], dtype=torch.float32)


def _all_of(values: Sequence[bool | None]) -> float:
    if any(value is False for value in values):
        return -1.0
    return math.nan if any(value is None for value in values) else 1.0


def labels_of_rewards(per_function: Tensor, weights: Tensor, functions: Sequence[Any], threshold: float) -> Tensor:
    """(N,) labels where no function judges: by the weighted sum (N, F) of those that do not merely shape."""
    judged = torch.tensor([role_of(function) != "shaping" for function in functions], device=per_function.device)
    if not judged.any():
        judged = torch.ones_like(judged)
    values = per_function[:, judged]
    total = (values * weights.to(values.device)[judged]).nansum(1)
    return torch.where(values.isnan().all(1), torch.nan, torch.where(total > threshold, 1.0, -1.0))


class UnknownStreak:
    """Ends a run that learns from nothing: rollouts in a row whose rewards are (nearly) all unknown."""

    def __init__(self, limit: int):
        self.limit, self.seen = limit, 0

    def add(self, unknown: float, cut: float) -> None:
        """Shares of one rollout's rows, over all processes. Raises TrainingStopped at the limit."""
        self.seen = self.seen + 1 if unknown >= MOSTLY else 0
        if self.seen < self.limit:
            return
        why = (
            f"{cut:.0%} of the answers were cut off by max_completion_length. Raise it, or set truncated=wrong, mask "
            "or soft"
            if cut >= 0.5
            else "The verifier judged (nearly) none; see its warnings above, and the golds and the prompt"
        )
        raise TrainingStopped(
            f"{self.seen} rollouts in a row gave only unknown rewards: nothing was learned from them. {why}. "
            "(max_unknown_rollouts)"
        )
