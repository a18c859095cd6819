"""Limits that end a run before it wastes a night: entropy, repetition, KL. Non-finite values are checked apart."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Watchdog:
    """Counts optimiser steps in a row on which a limit is broken; None switches a limit off.

    min_entropy: nats; max_entropy_share: of log(vocabulary), and only if entropy rose to 1.5 times its first value (a
    model that starts out undecided has not exploded); max_repetition: share of long completions that loop; max_kl: mean
    KL per token between the rollout policy and the current one.
    """

    vocabulary: int
    min_entropy: float | None
    max_entropy_share: float | None
    max_repetition: float | None
    max_kl: float | None
    patience: int
    first_entropy: float | None = None
    strikes: dict[str, int] = field(default_factory=dict)

    def check(self, entropy: float | None, kl: float | None, repetition: float | None) -> str | None:
        """The reason to stop, or None. A value of None was not measured and leaves its counter as it is."""
        if entropy is not None and self.first_entropy is None:
            self.first_entropy = entropy
        for name, value, broken, limit, advice in self._limits(entropy, kl, repetition):
            if value is None or limit is None:
                continue
            self.strikes[name] = self.strikes.get(name, 0) + 1 if broken else 0
            if self.strikes[name] >= self.patience:
                return f"{name}: {value:.4g} against the limit {limit:.4g} for {self.patience} steps in a row. {advice}"
        return None

    def _limits(self, entropy, kl, repetition):
        ceiling = None if self.max_entropy_share is None else self.max_entropy_share * math.log(self.vocabulary)
        start = self.first_entropy or 0.0
        exploded = entropy is not None and ceiling is not None and entropy > max(ceiling, 1.5 * start)
        yield (
            "entropy collapsed", entropy, _below(entropy, self.min_entropy), self.min_entropy,
            "Lower learning_rate or the weight of positives, or set min_entropy",
        )  # fmt: skip
        yield (
            "entropy exploded", entropy, exploded, ceiling,
            "Lower learning_rate, add a positive weight (W-REINFORCE), or set max_entropy_share",
        )  # fmt: skip
        yield (
            "completions repeat themselves", repetition, _above(repetition, self.max_repetition), self.max_repetition,
            "Go back to an earlier checkpoint, or set max_repetition",
        )  # fmt: skip
        yield (
            "policy left the rollout policy (KL)", kl, _above(kl, self.max_kl), self.max_kl,
            "Lower learning_rate or updates_per_rollout, or set max_kl",
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {"first_entropy": self.first_entropy, "strikes": self.strikes}

    def load(self, state: dict[str, Any]) -> None:
        self.first_entropy, self.strikes = state["first_entropy"], dict(state["strikes"])


def _below(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value < limit


def _above(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit
