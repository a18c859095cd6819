"""Worker processes that may be killed: the only place where possibly slow grading happens.

Each worker is a plain subprocess with JSON lines on its pipes, owned by one thread of the pool. No signals, no
multiprocessing, no re-import of ``__main__``: it works from any thread, under accelerate and in notebooks. Limits count
the worker's own processor time, so a busy machine makes verdicts late, not *unknown*. An item that reaches its limit
costs exactly that: its worker ends and is replaced by a spare one that is already warm. A worker that died before it
began with an item, whenever that was, is replaced and the item asked again. Items that look expensive wait in a lane of
their own and never occupy all workers, so ordinary items do not queue behind them. The same answer to the same question
(frequent in a group of samples) is worked on once. When no worker can be started, or workers fail at item after item
and then at one whose verdict is known, every waiting and later item raises: a run without verdicts must not go on.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from negpo.errors import ConfigError
from negpo.rewards.decide import Gold, gold_text, grade_here
from negpo.rewards.extract import extract_answer
from negpo.rewards.options import EXACT, GradeOptions
from negpo.rewards.verdict import DEFAULT_GRADER, Verdict
from negpo.rewards.workers import Reply, WorkerQueue

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 1.8  # seconds: with the overhead of replacing a worker a verdict still comes within two when idle
DEFAULT_MEMORY_MB = 1024
MIN_MEMORY_MB = 256
_REMEMBERED = 4096  # verdicts from workers kept for identical answers
_RETRY_AFTER = 300.0  # seconds after which an unknown verdict is no longer reused: the machine may have been short


class VerifierPool:
    """Grades batches with ``workers`` processes; see the module's docstring.

    Args:
        workers: processes that grade at the same time. They start with the first item that needs one.
        timeout: seconds of its own processor time one item may take in a worker before it is killed and the item is
            ``unknown``. memory_mb: MiB that items may allocate in a worker on top of its imports (RLIMIT_AS, Linux);
            beyond it the item is ``unknown``.

    Raises:
        ConfigError: fewer than one worker, or limits that are too small.
    """

    def __init__(self, workers: int = 2, timeout: float = DEFAULT_TIMEOUT, memory_mb: int = DEFAULT_MEMORY_MB):
        if workers < 1 or not 0 < timeout < float("inf") or memory_mb < MIN_MEMORY_MB:
            raise ConfigError(
                f"workers={workers}, timeout={timeout}, memory_mb={memory_mb}: need >= 1, > 0 and >= {MIN_MEMORY_MB}"
            )
        self.workers, self.timeout, self.memory_mb = workers, timeout, memory_mb
        self.owner = os.getpid()
        self._queue = WorkerQueue(workers, memory_mb)
        self._counts: Counter[str] = Counter()
        self._remembered: OrderedDict[tuple, Future[Verdict]] = OrderedDict()
        self._changed = threading.RLock()

    # -- grading ------------------------------------------------------------------------------------------------------
    def grade(
        self,
        response: str,
        gold: Gold,
        *,
        kind: str | None = None,
        mode: str = "default",
        options: GradeOptions = EXACT,
        truncated: bool = False,
    ) -> Verdict:
        """One verdict, in this process where that is quick, else in a worker. Arguments as in
        :func:`negpo.rewards.grade`.
        """
        return self.grade_future(response, gold, kind=kind, mode=mode, options=options, truncated=truncated).result()

    def grade_many(
        self,
        pairs: Iterable[tuple[str, Gold]],
        *,
        kinds: Sequence[str | None] | str | None = None,
        mode: str = "default",
        options: Sequence[GradeOptions] | GradeOptions = EXACT,
        truncated: Sequence[bool] | None = None,
    ) -> list[Verdict]:
        """Verdicts of (response, gold) pairs in their order. ``kinds`` and ``options``: one for all, or one per pair;
        ``truncated``: one flag per pair, none cut when None.

        Raises:
            VerifierError: the workers cannot grade, see the module's docstring.
        """
        return [future.result() for future in self._start_many(pairs, kinds, mode, options, truncated)]

    async def grade_many_async(
        self,
        pairs: Iterable[tuple[str, Gold]],
        *,
        kinds: Sequence[str | None] | str | None = None,
        mode: str = "default",
        options: Sequence[GradeOptions] | GradeOptions = EXACT,
        truncated: Sequence[bool] | None = None,
    ) -> list[Verdict]:
        """:meth:`grade_many` without blocking the event loop."""
        futures = await asyncio.to_thread(self._start_many, list(pairs), kinds, mode, options, truncated)
        return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))

    def grade_future(
        self,
        response: str,
        gold: Gold,
        *,
        kind: str | None = None,
        mode: str = "default",
        options: GradeOptions = EXACT,
        truncated: bool = False,
    ) -> Future[Verdict]:
        """A future for one verdict, already done where this process could decide."""
        verdict = grade_here(response, gold, kind=kind, mode=mode, options=options, truncated=truncated)
        if verdict is None:
            return self.submit(response, gold, kind=kind, mode=mode, options=options)
        self._count(verdict, "here")
        done: Future[Verdict] = Future()
        done.set_result(verdict)
        return done

    def _start_many(
        self, pairs: Iterable[tuple[str, Gold]], kinds: Any, mode: str, options: Any, truncated: Sequence[bool] | None
    ) -> list[Future[Verdict]]:
        pairs = list(pairs)
        each = [kinds] * len(pairs) if kinds is None or isinstance(kinds, str) else list(kinds)
        allowed = [options] * len(pairs) if isinstance(options, GradeOptions) else list(options)
        cut = [False] * len(pairs) if truncated is None else list(truncated)
        return [
            self.grade_future(*pair, kind=kind, mode=mode, options=option, truncated=was_cut)
            for pair, kind, option, was_cut in zip(pairs, each, allowed, cut, strict=True)
        ]

    def submit(
        self,
        response: str,
        gold: Gold,
        *,
        kind: str | None = None,
        mode: str = "default",
        options: GradeOptions = EXACT,
        timeout: float | None = None,
    ) -> Future:
        """A future for one verdict from a worker. The caller has found that it cannot be decided in this process."""
        extracted = extract_answer(response).text if mode == "default" else response
        key = (extracted, gold_text(gold), kind, mode, options)
        with self._changed:
            future = self._remembered.get(key)
            if future is None or _is_stale(future):
                request: dict[str, Any] = {"op": "grade", "response": response, "gold": key[1], "kind": kind}
                request |= {"mode": mode, "options": options.to_dict()}
                future = self._remembered[key] = self._verdict(request, timeout or self.timeout)
                while len(self._remembered) > _REMEMBERED:
                    self._remembered.popitem(last=False)
        future.add_done_callback(self._count_decided)
        return future

    def _verdict(self, request: dict[str, Any], timeout: float) -> Future[Verdict]:
        """A future for what a worker says."""
        verdict: Future[Verdict] = Future()
        verdict.set_running_or_notify_cancel()  # shared by all who ask the same: nobody may cancel it

        def settle(done: Future[Reply]) -> None:
            error = done.exception()
            if error is not None:
                verdict.set_exception(error)
            else:
                verdict.finished = time.monotonic()  # type: ignore[attr-defined]
                verdict.set_result(_to_verdict(done.result(), request["mode"]))

        reply = self._queue.enqueue(request, timeout, suspicious=looks_expensive(request["response"]))
        reply.add_done_callback(settle)
        return verdict

    def readable(self, latex: Sequence[str]) -> list[bool | None]:
        """Whether math-verify understands each expression; None after a timeout or a crash."""
        futures = [
            self._queue.enqueue({"op": "readable", "gold": text}, self.timeout, suspicious=False) for text in latex
        ]
        return [future.result().get("readable") for future in futures]

    def worker_pids(self, *, busy: bool = False) -> list[int]:
        """Process ids of the running workers, spare ones included; with ``busy`` those that are at work on an item."""
        return self._queue.pids(busy=busy)

    def stats(self) -> dict[str, int]:
        """Verdicts by status and by reason of the unknown ones, how many a worker decided, and worker respawns."""
        with self._changed:
            return dict(self._counts + self._queue.counts)

    def _count_decided(self, future: Future[Verdict]) -> None:
        if future.exception() is None:
            self._count(future.result(), "in workers")

    def _count(self, verdict: Verdict, where: str) -> None:
        with self._changed:
            self._counts[verdict.status] += 1
            self._counts[f"decided {where}"] += 1
            if verdict.status == "unknown":
                self._counts[f"unknown: {verdict.reason}"] += 1

    @property
    def closed(self) -> bool:
        return self._queue.closed

    def close(self) -> None:
        """Ends all workers; items that are still waiting become ``unknown``."""
        if self.closed or self.owner != os.getpid():
            return
        self._queue.close()
        if stats := self.stats():
            logger.info("verifier counts: %s", stats)

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _to_verdict(reply: Reply, mode: str) -> Verdict:
    if "verdict" in reply:
        return Verdict(**reply["verdict"])
    return Verdict("unknown", reply["error"], mode=mode, grader=DEFAULT_GRADER if mode == "default" else mode)


def _is_stale(future: Future[Verdict]) -> bool:
    """Whether a remembered verdict is an error or an old unknown one."""
    if not future.done():
        return False
    if future.exception() is not None:
        return True
    return not future.result().known and time.monotonic() - future.finished > _RETRY_AFTER  # type: ignore[attr-defined]


def looks_expensive(response: str) -> bool:
    """A guess, made without parsing, that a response will keep a symbolic engine busy."""
    tail = response[-2000:]
    endless = re.search(r"\\(?:int|sum|prod|lim)", tail) and re.search(r"\\infty|\d{6,}|\d{2,}\s*\^", tail)
    return tail.count("^") > 12 or tail.count("\\sqrt") > 6 or bool(endless)


_default: VerifierPool | None = None
_default_lock = threading.Lock()


def default_pool() -> VerifierPool:
    """The pool behind :func:`negpo.rewards.grade`, created when first needed and closed at exit. A forked child gets
    its own.
    """
    global _default
    with _default_lock:
        if _default is None or _default.closed or _default.owner != os.getpid():
            _default = VerifierPool()
            atexit.register(_default.close)
        return _default
