"""Which way through the rows of logits is quickest within a memory budget: a cost model with its constants.

The choice depends on shapes and on the device's total memory alone, never on what happens to be free, so that a resumed
run computes what the first one did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Rates that one Hopper GPU reaches on large products, from its datasheet at the usual two thirds. They are assumptions:
# nobody has measured them for this project. `scripts/gpu_check.py` measures all four and prints them beside these.
HALF_FLOPS = 6.0e14  # bfloat16 or float16 factors
FLOAT_FLOPS = 4.0e13  # float32 factors
BYTES_PER_SECOND = 3.0e12
SECONDS_PER_LAUNCH = 1.0e-5

# One call may hold this share of the device's memory: 8.8 GiB of an H200, 5 GiB of an H100, 1.5 GiB of a 24 GiB card.
BUDGET_SHARE = 1 / 16
CPU_BUDGET = 256 * 2**20  # Triton's interpreter only
# Fewer tokens at a time than this leave a GPU's matrix units idle; a budget below it is exceeded rather than obeyed.
MIN_ROWS = 128
_LOGIT = 4  # bytes; logits are float32


@dataclass(frozen=True)
class Problem:
    """``width``: bytes of a factor of products (2 in half precision). ``*_trained``: which gradients are wanted."""

    tokens: int
    hidden: int
    vocab: int
    width: int
    head_trained: bool
    states_trained: bool


@dataclass(frozen=True)
class Plan:
    """``rows``: tokens at a time. Bytes: ``held`` from forward to backward, and the transient ones of both passes."""

    name: str
    rows: int
    seconds: float
    held: int
    forward_bytes: int
    backward_bytes: int

    def blocks(self, n: int) -> Iterator[slice]:
        for start in range(0, n, self.rows):
            yield slice(start, min(start + self.rows, n))


def budget_of(device: torch.device) -> int:
    """Bytes that one call may hold at a time."""
    if device.type != "cuda":
        return CPU_BUDGET
    return int(torch.cuda.get_device_properties(device).total_memory * BUDGET_SHARE)


def choose_plan(problem: Problem, budget: int) -> Plan:
    """The quickest plan that fits ``budget`` bytes, by estimated seconds, then by what it holds."""
    plans = [_recompute(problem, budget)]
    if problem.head_trained:
        kept = problem.tokens * problem.vocab * problem.width
        if kept + _fewest(problem) * problem.vocab * _LOGIT <= budget:
            plans.append(_keep(problem, kept, budget - kept))
    elif problem.states_trained:
        plans.append(_direct(problem, budget))
    return min(plans, key=lambda plan: (plan.seconds, plan.held))


def _fewest(problem: Problem) -> int:
    return max(1, min(problem.tokens, MIN_ROWS))


def _rows(problem: Problem, bytes_per_entry: int, budget: int) -> int:
    fits = budget // max(1, problem.vocab * bytes_per_entry)
    return min(max(fits, _fewest(problem)), max(problem.tokens, 1))


def _keep(problem: Problem, kept: int, budget: int) -> Plan:
    rows = _rows(problem, _LOGIT, budget)
    products = 1 + problem.states_trained + 1
    # logits: written, read for log Z, read for D; D: written once, read by each product of the backward
    traffic = 3 * _LOGIT + problem.width * products
    seconds = _seconds(problem, products, traffic, rows, accumulates=False)
    numbers = problem.tokens * problem.hidden  # of the states; scaled by the upstream gradient in float32, then rounded
    return Plan("keep", rows, seconds, kept, rows * problem.vocab * _LOGIT, numbers * (4 + problem.width))


def _recompute(problem: Problem, budget: int) -> Plan:
    rows = _rows(problem, _LOGIT + _written(problem), budget)
    backward = problem.states_trained + problem.head_trained
    products = 1 + (1 + backward if backward else 0)
    traffic = 2 * _LOGIT + ((2 * _LOGIT + problem.width * (1 + backward)) if backward else 0)
    seconds = _seconds(problem, products, traffic, rows, accumulates=problem.head_trained)
    block, accumulator = rows * problem.vocab, 4 * problem.vocab * problem.hidden if problem.head_trained else 0
    backward_bytes = block * (_LOGIT + _written(problem)) + accumulator + _states(problem) if backward else 0
    return Plan("recompute", rows, seconds, 0, block * _LOGIT, backward_bytes)


def _direct(problem: Problem, budget: int) -> Plan:
    rows = _rows(problem, _LOGIT + problem.width, budget)
    seconds = _seconds(problem, 2, 3 * _LOGIT + 2 * problem.width, rows, accumulates=False)
    held = 4 * problem.tokens * problem.hidden
    return Plan("direct", rows, seconds, held, rows * problem.vocab * (_LOGIT + problem.width), held)


def _written(problem: Problem) -> int:
    """Bytes per entry of a gradient block beside its logits; float32 gradients overwrite them."""
    return 0 if problem.width == _LOGIT else problem.width


def _states(problem: Problem) -> int:
    """Float32 gradient of the states, before it is rounded."""
    return 4 * problem.tokens * problem.hidden if problem.states_trained else 0


def _seconds(problem: Problem, products: int, bytes_per_entry: int, rows: int, *, accumulates: bool) -> float:
    """Products at the matrix rate, logits, weights and head gradient at the memory rate, launches."""
    flops = 2.0 * problem.tokens * problem.hidden * problem.vocab * products
    blocks = -(-problem.tokens // rows) if problem.tokens else 0
    head = problem.vocab * problem.hidden
    traffic = problem.tokens * problem.vocab * bytes_per_entry + blocks * products * head * problem.width
    if accumulates:
        traffic += blocks * 2 * 4 * head  # the float32 gradient is read and written once per block
    rate = HALF_FLOPS if problem.width < _LOGIT else FLOAT_FLOPS
    return flops / rate + traffic / BYTES_PER_SECOND + blocks * (products + 2) * SECONDS_PER_LAUNCH
