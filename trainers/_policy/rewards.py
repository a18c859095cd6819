"""Reward functions behind a guard: time limit, checked results, an early start beside the log-prob pass."""

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy
import torch

from negpo.errors import DataError, NegpoError, TrainingStopped
from negpo.rewards.outcome import Rewards

logger = logging.getLogger(__name__)


class GuardedReward:
    """Calls one reward function so that nothing it does can corrupt or hang a batch.

    A call runs in a thread. ``start`` begins it early; the later ``__call__`` by TRL waits for that result. None, NaN
    and infinities are unknown (NaN).

    Raises:
        DataError: the function raised (unless ``errors="unknown"``), or returned a wrong length or no numbers.
        TrainingStopped: too many timeouts in a row.
    """

    def __init__(self, function: Callable, name: str, *, timeout: float, max_timeouts: int, errors: str):
        self.function, self.name, self.timeout = function, name, timeout
        self.max_timeouts, self.errors = max_timeouts, errors
        self.timeouts_in_a_row = 0
        self.labels: list[bool | None] | None = None  # of the last call, where the function gives verdicts
        self._pending: _Call | None = None

    def start(self, **kwargs: Any) -> None:
        self._pending = _Call(self.function, kwargs)

    def __call__(self, **kwargs: Any) -> list[float]:
        call, self._pending = self._pending, None
        self.labels = None
        if call is None or call.kwargs["completions"] is not kwargs["completions"]:
            call = _Call(self.function, kwargs)
        count = len(kwargs["completions"])
        if not call.finished.wait(self.timeout):
            return self._timed_out(count)
        self.timeouts_in_a_row = 0
        if call.error is not None:
            return self._failed(call.error, count)
        call.replay_logs(kwargs)
        return self._checked(call.result, count)

    def _timed_out(self, count: int) -> list[float]:
        self.timeouts_in_a_row += 1
        if self.timeouts_in_a_row >= self.max_timeouts:
            raise TrainingStopped(
                f"reward function '{self.name}' exceeded {self.timeout:g} s {self.timeouts_in_a_row} times in a row. "
                "Make it faster, or raise reward_timeout"
            )
        logger.warning("reward '%s' exceeded %g s: %d completions are unknown", self.name, self.timeout, count)
        return [math.nan] * count

    def _failed(self, error: BaseException, count: int) -> list[float]:
        if self.errors == "unknown":
            logger.warning("reward '%s' raised %r: %d completions are unknown", self.name, error, count)
            return [math.nan] * count
        if isinstance(error, NegpoError):
            raise error
        raise DataError(
            f"reward function '{self.name}' raised {type(error).__name__}: {error}. Fix it, let it return None for "
            "what it cannot judge, or set reward_errors=unknown"
        ) from error

    def _checked(self, result: Any, count: int) -> list[float]:
        if isinstance(result, Rewards):
            self.labels = result.labels
        if isinstance(result, torch.Tensor | numpy.ndarray | numpy.generic):
            if result.ndim != 1:
                raise DataError(
                    f"reward function '{self.name}' returned a tensor {tuple(result.shape)}, need ({count},)"
                )
            result = result.tolist()
        if not isinstance(result, Sequence) or isinstance(result, str):
            raise DataError(
                f"reward function '{self.name}' returned {type(result).__name__}, need a list of numbers or None"
            )
        if len(result) != count:
            raise DataError(f"reward function '{self.name}' returned {len(result)} rewards for {count} completions")
        for row, value in enumerate(result):
            if value is not None and not isinstance(value, Real):
                raise DataError(f"reward function '{self.name}' returned {value!r:.80}; need a number or None", row=row)
        return [self._number(value, row) for row, value in enumerate(result)]

    def _number(self, value: Any, row: int) -> float:
        try:
            return float(value) if value is not None and math.isfinite(value) else math.nan
        except OverflowError as error:
            raise DataError(f"reward function '{self.name}' returned a number beyond all range", row=row) from error


class _Call:
    """One call in its own thread. What it logs is held back: a call given up on must not log into a later batch."""

    def __init__(self, function: Callable, kwargs: dict[str, Any]):
        self.kwargs, self.finished = kwargs, threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        self._extras: list[tuple] = []
        self._metrics: list[tuple] = []
        held = kwargs | {"log_extra": self._hold(self._extras), "log_metric": self._hold(self._metrics)}
        threading.Thread(target=self._run, args=(function, held), daemon=True).start()

    def replay_logs(self, kwargs: dict[str, Any]) -> None:
        for name, calls in (("log_extra", self._extras), ("log_metric", self._metrics)):
            if name in kwargs:
                for values in calls:
                    kwargs[name](*values)

    @staticmethod
    def _hold(calls: list[tuple]) -> Callable:
        return lambda *values: calls.append(values)

    def _run(self, function: Callable, kwargs: dict[str, Any]) -> None:
        try:
            result = function(**kwargs)
            self.result = asyncio.run(result) if asyncio.iscoroutine(result) else result
        except Exception as error:  # handed to the waiting thread
            self.error = error
        finally:
            self.finished.set()
