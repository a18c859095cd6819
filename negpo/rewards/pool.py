"""Worker processes that may be killed: the only place where possibly slow grading happens.

Each worker is a plain subprocess with JSON lines on its pipes, owned by one thread of the pool. No signals, no
multiprocessing, no re-import of ``__main__``: it works from any thread, under accelerate and in notebooks. An item
that takes longer than its limit costs exactly that limit: its worker is killed and replaced by a spare one that is
already warm. Items that look expensive wait in a lane of their own and never occupy all workers, so ordinary items do
not queue behind them. The same answer to the same question (frequent in a group of samples) is worked on once.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import re
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from negpo.errors import ConfigError
from negpo.rewards.extract import extract_answer
from negpo.rewards.grader import DEFAULT_TIMEOUT, Gold, gold_text, grade_here
from negpo.rewards.process import WorkerProcess
from negpo.rewards.verdict import DEFAULT_GRADER, Verdict

logger = logging.getLogger(__name__)

DEFAULT_MEMORY_MB = 1024
_REMEMBERED = 4096  # verdicts from workers kept for identical answers
DEAD_ON_ARRIVAL = 0.05  # seconds within which a worker's end cannot be the doing of the item it was handed
_RETRY_AFTER = 300.0  # seconds after which an unknown verdict is no longer reused: the machine may have been busy


@dataclass
class _Job:
    request: dict[str, Any]
    timeout: float
    future: Future = field(default_factory=Future)
    asked_again: bool = False


class VerifierPool:
    """Grades batches with ``workers`` processes; see the module's docstring.

    Args:
        workers: processes that grade at the same time. They start with the first item that needs one.
        timeout: wall-clock seconds one item may take in a worker before it is killed and the item is ``unknown``.
        memory_mb: address space of one worker in MiB (RLIMIT_AS); beyond it the item is ``unknown``.

    Raises:
        ConfigError: fewer than one worker, or limits that are not positive.
    """

    def __init__(self, workers: int = 2, timeout: float = DEFAULT_TIMEOUT, memory_mb: int = DEFAULT_MEMORY_MB):
        if workers < 1 or timeout <= 0 or memory_mb < 256:
            raise ConfigError(f"workers={workers}, timeout={timeout}, memory_mb={memory_mb}: need >= 1, > 0 and >= 256")
        self.workers, self.timeout, self.memory_mb = workers, timeout, memory_mb
        self.owner = os.getpid()  # threads and pipes do not survive a fork
        self.counts: Counter[str] = Counter()
        self._ordinary: deque[_Job] = deque()
        self._suspicious: deque[_Job] = deque()
        self._suspicious_running = 0
        self._remembered: OrderedDict[tuple, Future] = OrderedDict()
        self._changed = threading.Condition(threading.RLock())
        self._threads: list[threading.Thread] = []
        self._spares: deque[WorkerProcess] = deque()
        self._alive: set[WorkerProcess] = set()
        self._closed = False

    # -- grading ------------------------------------------------------------------------------------------------------
    def grade(self, response: str, gold: Gold, *, kind: str | None = None, mode: str = "default") -> Verdict:
        """One verdict, in this process where that is quick, else in a worker."""
        return self.grade_future(response, gold, kind=kind, mode=mode).result()

    def grade_many(
        self,
        pairs: Iterable[tuple[str, Gold]],
        *,
        kinds: Sequence[str | None] | str | None = None,
        mode: str = "default",
    ) -> list[Verdict]:
        """Verdicts of (response, gold) pairs in their order. ``kinds``: one kind for all, or one per pair."""
        return [future.result() for future in self._start_many(pairs, kinds, mode)]

    async def grade_many_async(
        self,
        pairs: Iterable[tuple[str, Gold]],
        *,
        kinds: Sequence[str | None] | str | None = None,
        mode: str = "default",
    ) -> list[Verdict]:
        """:meth:`grade_many` without blocking the event loop."""
        futures = await asyncio.to_thread(self._start_many, list(pairs), kinds, mode)
        return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))

    def grade_future(
        self, response: str, gold: Gold, *, kind: str | None = None, mode: str = "default"
    ) -> Future[Verdict]:
        """A future for one verdict, already done where this process could decide."""
        verdict = grade_here(response, gold, kind=kind, mode=mode)
        if verdict is None:
            return self.submit(response, gold, kind=kind, mode=mode)
        self._count(verdict, "here")
        done: Future[Verdict] = Future()
        done.set_result(verdict)
        return done

    def _start_many(self, pairs: Iterable[tuple[str, Gold]], kinds: Any, mode: str) -> list[Future[Verdict]]:
        pairs = list(pairs)
        each = [kinds] * len(pairs) if kinds is None or isinstance(kinds, str) else list(kinds)
        return [self.grade_future(*pair, kind=kind, mode=mode) for pair, kind in zip(pairs, each, strict=True)]

    def submit(
        self, response: str, gold: Gold, *, kind: str | None = None, mode: str = "default", timeout: float | None = None
    ) -> Future:
        """A future for one verdict from a worker. The caller has found that it cannot be decided in this process."""
        extracted = extract_answer(response).text if mode == "default" else response
        key = (extracted, gold_text(gold), kind, mode)
        with self._changed:
            future = self._remembered.get(key)
            if future is None or _is_stale(future):
                request = {"op": "grade", "response": response, "gold": key[1], "kind": kind, "mode": mode}
                job = _Job(request, timeout or self.timeout)
                future = self._remembered[key] = self._enqueue(job, suspicious=looks_expensive(response))
                while len(self._remembered) > _REMEMBERED:
                    self._remembered.popitem(last=False)
        future.add_done_callback(lambda done: self._count(done.result(), "in workers"))
        return future

    def is_readable(self, latex: str) -> bool:
        """Whether math-verify understands an expression; False after a timeout."""
        reply = self._enqueue(_Job({"op": "readable", "gold": latex}, self.timeout), suspicious=False).result()
        return bool(isinstance(reply, dict) and reply.get("readable"))

    def worker_pids(self) -> list[int]:
        """Process ids of the running workers, spare ones included."""
        with self._changed:
            return [worker.pid for worker in self._alive if worker.usable]

    def stats(self) -> dict[str, int]:
        """Verdicts by status and by reason of the unknown ones, how many a worker decided, and worker respawns."""
        with self._changed:
            return dict(self.counts)

    # -- the queue ----------------------------------------------------------------------------------------------------
    def _enqueue(self, job: _Job, *, suspicious: bool) -> Future:
        with self._changed:
            if self._closed:
                raise RuntimeError("this VerifierPool is closed")
            (self._suspicious if suspicious else self._ordinary).append(job)
            while len(self._threads) < self.workers:
                thread = threading.Thread(target=self._serve, name=f"verifier-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
        return job.future

    def _next(self) -> tuple[_Job, bool] | None:
        """The next job and whether it is a suspicious one; None when the pool closes. Blocks."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                if self._ordinary:
                    return self._ordinary.popleft(), False
                # One worker stays free for ordinary items where there are several.
                if self._suspicious and self._suspicious_running < max(1, self.workers - 1):
                    self._suspicious_running += 1
                    return self._suspicious.popleft(), True
                self._changed.wait()

    def _serve(self) -> None:
        """One thread: owns one worker at a time and feeds it."""
        worker = self._take_worker()
        while True:
            entry = self._next()
            if entry is None:
                break
            job, suspicious = entry
            reply, worker = self._ask(worker, job)
            self._finish(job, reply)
            if suspicious:
                with self._changed:
                    self._suspicious_running -= 1
                    self._changed.notify_all()
        worker.kill()

    def _ask(self, worker: WorkerProcess, job: _Job) -> tuple[dict[str, Any], WorkerProcess]:
        """The reply to a job, and the worker to go on with: a fresh one after a kill.

        A worker that was gone before it can have looked at the item (killed from outside while idle) says nothing about
        the item, which is asked once more of the next worker.
        """
        started = time.monotonic()
        reply = worker.ask(job.request, job.timeout) if worker.wait_ready() else {"error": "no worker could be started"}
        if worker.usable:
            return reply, worker
        if not job.asked_again and time.monotonic() - started < DEAD_ON_ARRIVAL:
            job.asked_again = True
            worker.kill()
            return self._ask(self._take_worker(), job)
        worker.kill()
        with self._changed:
            self.counts["respawns"] += 1
            if self._closed:
                return reply, worker
        logger.info("verifier worker %d replaced after: %s", worker.pid, reply.get("error"))
        return reply, self._take_worker()

    def _finish(self, job: _Job, reply: dict[str, Any]) -> None:
        if job.request["op"] == "readable":
            job.future.set_result(reply)
            return
        if "verdict" in reply:
            verdict = Verdict(**reply["verdict"])
        else:
            mode = job.request["mode"]
            verdict = Verdict(
                "unknown", reply["error"], mode=mode, grader=DEFAULT_GRADER if mode == "default" else mode
            )
        job.future.finished = time.monotonic()  # type: ignore[attr-defined]
        job.future.set_result(verdict)

    def _count(self, verdict: Verdict, where: str) -> None:
        with self._changed:
            self.counts[verdict.status] += 1
            self.counts[f"decided {where}"] += 1
            if verdict.status == "unknown":
                self.counts[f"unknown: {verdict.reason}"] += 1

    # -- processes ----------------------------------------------------------------------------------------------------
    def _take_worker(self) -> WorkerProcess:
        """A warm worker, and a spare one starting behind it. Dead ones (killed from outside) are passed over."""
        for _ in range(3):
            with self._changed:
                worker = self._spares.popleft() if self._spares else self._new_worker()
                if not self._spares and not self._closed:
                    self._spares.append(self._new_worker())
            if self._closed or worker.wait_ready():
                break
            worker.kill()
        return worker

    def _new_worker(self) -> WorkerProcess:
        worker = WorkerProcess(self.memory_mb)
        self._alive = {other for other in self._alive if other.usable} | {worker}
        return worker

    def close(self) -> None:
        """Ends all workers; jobs that are still waiting become ``unknown``."""
        with self._changed:
            if self._closed or self.owner != os.getpid():
                return
            self._closed = True
            waiting = [*self._ordinary, *self._suspicious]
            self._ordinary.clear()
            self._suspicious.clear()
            self._changed.notify_all()
            workers = list(self._alive)
        for worker in workers:
            worker.kill()
        for job in waiting:
            self._finish(job, {"error": "the pool was closed"})
        if self.counts:
            logger.info("verifier counts: %s", dict(self.counts))

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _is_stale(future: Future) -> bool:
    """Whether a remembered verdict is an old unknown one."""
    return future.done() and not future.result().known and time.monotonic() - future.finished > _RETRY_AFTER  # type: ignore[attr-defined]


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
        if _default is None or _default._closed or _default.owner != os.getpid():
            _default = VerifierPool()
            atexit.register(_default.close)
        return _default
