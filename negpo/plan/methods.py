"""What a method runs in one step, as far as memory and operations depend on it."""

from dataclasses import dataclass

from negpo.errors import ConfigError


@dataclass(frozen=True)
class MethodCost:
    """rows: rows of the forward per example of the micro-batch, with the method's default settings.

    reference: "none", "logprobs" (a cache can replace it) or "model" (needed in every step, whatever the cache).
    updates: optimiser steps per rollout batch, 0 for methods on stored rows.
    """

    rows: int
    reference: str = "none"
    updates: int = 0


COSTS: dict[str, MethodCost] = {
    # forget rows, and retain rows where the default has a retain term
    "ga": MethodCost(1),
    "graddiff": MethodCost(2),
    "npo": MethodCost(2, "logprobs"),
    "simnpo": MethodCost(2),
    "wga": MethodCost(2),
    "idkdpo": MethodCost(3, "logprobs"),  # forget, "I don't know", retain
    "rmu": MethodCost(2, "model"),
    "catnip": MethodCost(1),
    # preferred and dispreferred answers of one prompt
    "sft": MethodCost(1),
    "redi": MethodCost(2),
    "d2o": MethodCost(5, "logprobs"),  # one rejected answer, K = 4 samples
    "dpo": MethodCost(2, "logprobs"),
    "simpo": MethodCost(2),
    "kto": MethodCost(2, "logprobs"),
    "step_dpo": MethodCost(2, "logprobs"),
    "aft": MethodCost(2),
    "lipo": MethodCost(2, "logprobs"),
    "wpn": MethodCost(2),
    # completions
    "nsr": MethodCost(1, updates=4),
    "ngrpo": MethodCost(1, updates=4),
    "nft": MethodCost(1, updates=16),
    "resrl": MethodCost(1, updates=4),
    "topr": MethodCost(1, updates=4),
    "raft": MethodCost(1, updates=4),
    "reinforce_rej": MethodCost(1, updates=4),
    "grpo": MethodCost(1, updates=4),
}


def cost_of(method: str) -> MethodCost:
    if method not in COSTS:
        raise ConfigError(f"method is {method!r}; choose one of {', '.join(COSTS)}")
    return COSTS[method]
