"""The queue in front of the worker processes, and who replaces them.

Only what a worker did after it began with an item is the item's doing. A worker that died before that, whenever it was,
is replaced and the item asked again; so is one that ran out of memory which earlier items had left occupied. When no
worker can be started, or workers fail at item after item and then at one whose verdict is known, the queue is broken:
everyone who waits or asks gets a :class:`~negpo.errors.VerifierError`, because a run without verdicts must not go on.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from negpo.errors import VerifierError
from negpo.rewards.options import EXACT
from negpo.rewards.process import WorkerProcess

logger = logging.getLogger(__name__)

FAILED_STARTS = 3  # workers in a row that end before they are ready: the queue is broken
MAX_REPLACEMENTS = 12  # of idle workers for one item; more means that somebody kills every worker there is
FAILURES_BEFORE_PROBE = 25  # items in a row without a reply: is it the items or the workers?
_PROBE = {"op": "grade", "response": r"\boxed{\int_0^1 x dx}", "gold": r"\frac12", "kind": None, "mode": "default",
          "options": EXACT.to_dict()}  # fmt: skip
_PROBE_SECONDS = 5.0

Reply = dict[str, Any]  # what a worker answered, or {"error": why there is no answer}


@dataclass
class _Job:
    request: dict[str, Any]
    timeout: float
    future: Future[Reply] = field(default_factory=Future)


class WorkerQueue:
    """``workers`` threads, each with one worker process at a time.

    Items that look expensive ("suspicious") wait in a lane of their own and never occupy all workers.
    """

    def __init__(self, workers: int, memory_mb: int):
        self.workers, self.memory_mb = workers, memory_mb
        self.counts: Counter[str] = Counter()
        self.changed = threading.Condition(threading.RLock())
        self.closed = False
        self._owner = os.getpid()  # threads and pipes do not survive a fork
        self._ordinary: deque[_Job] = deque()
        self._suspicious: deque[_Job] = deque()
        self._suspicious_running = 0
        self._threads: list[threading.Thread] = []
        self._spares: deque[WorkerProcess] = deque()
        self._alive: set[WorkerProcess] = set()
        self._failed_starts = self._failures = 0
        self._broken = ""  # why nothing can be graded any more

    def enqueue(self, request: dict[str, Any], timeout: float, *, suspicious: bool) -> Future[Reply]:
        """A future for the reply.

        Raises:
            RuntimeError: closed, or made before a fork. VerifierError: broken.
        """
        if self._owner != os.getpid():
            raise RuntimeError(
                f"this VerifierPool belongs to process {self._owner}; after a fork create another or use default_pool()"
            )
        job = _Job(request, timeout)
        with self.changed:
            if self.closed:
                raise RuntimeError("this VerifierPool is closed")
            if self._broken:
                raise VerifierError(self._broken)
            (self._suspicious if suspicious else self._ordinary).append(job)
            while len(self._threads) < self.workers:
                thread = threading.Thread(target=self._serve, name=f"verifier-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self.changed.notify()
        return job.future

    def pids(self, *, busy: bool) -> list[int]:
        """Process ids of the running workers, spare ones included; with ``busy`` those at work on an item."""
        with self.changed:
            return [worker.pid for worker in self._alive if worker.alive and (worker.busy or not busy)]

    def close(self) -> None:
        """Ends all workers; what still waits gets an error reply. Without effect in a forked child."""
        with self.changed:
            if self.closed or self._owner != os.getpid():
                return
            self.closed = True
            waiting = self._drain()
            self.changed.notify_all()
            workers = list(self._alive)
        for worker in workers:
            worker.kill()
        for job in waiting:
            job.future.set_result({"error": "the pool was closed"})

    def _drain(self) -> list[_Job]:
        waiting = [*self._ordinary, *self._suspicious]
        self._ordinary.clear()
        self._suspicious.clear()
        return waiting

    # -- the threads --------------------------------------------------------------------------------------------------
    def _next(self) -> tuple[_Job, bool] | None:
        """The next job and whether it is a suspicious one; None when the queue closes. Blocks."""
        with self.changed:
            while True:
                if self.closed:
                    return None
                if self._ordinary:
                    return self._ordinary.popleft(), False
                # One worker stays free for ordinary items where there are several.
                if self._suspicious and self._suspicious_running < max(1, self.workers - 1):
                    self._suspicious_running += 1
                    return self._suspicious.popleft(), True
                self.changed.wait()

    def _serve(self) -> None:
        """One thread: owns one worker at a time and feeds it."""
        worker: WorkerProcess | None = None
        while True:
            entry = self._next()
            if entry is None:
                break
            job, suspicious = entry
            worker = self._work(worker, job)
            if suspicious:
                with self.changed:
                    self._suspicious_running -= 1
                    self.changed.notify_all()
        if worker is not None:
            worker.dispose()

    def _work(self, worker: WorkerProcess | None, job: _Job) -> WorkerProcess | None:
        """Settles one job; returns the worker to go on with, None after its end."""
        try:
            reply, worker = self._ask(worker, job)
            job.future.set_result(reply)
            with self.changed:
                self._failures = self._failures + 1 if "error" in reply else 0
                failures = 0 if self.closed else self._failures
            return self._probe(worker, failures) if failures >= FAILURES_BEFORE_PROBE else worker
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._break(str(error) if isinstance(error, VerifierError) else f"the verifier pool failed: {error!r}")
            if not job.future.done():
                job.future.set_exception(VerifierError(self._broken))
            return None

    def _ask(self, worker: WorkerProcess | None, job: _Job) -> tuple[Reply, WorkerProcess | None]:
        """The reply to a job, and the worker to go on with, None after its end."""
        for _ in range(MAX_REPLACEMENTS):
            if worker is not None and not worker.alive:
                self._retire(worker, "it died while idle")
                worker = None
            worker = worker or self._take_worker()
            used, outcome = worker.items > 0, worker.ask(job.request, job.timeout)
            if outcome.reply is not None and outcome.reply.get("error") != "memory limit":
                return outcome.reply, worker
            reply = outcome.reply or {"error": "the pool was closed" if self.closed else outcome.error}
            self._retire(worker, reply["error"])
            worker = None
            if self.closed or (outcome.reply is None and outcome.started) or (outcome.reply and not used):
                return reply, None
        raise VerifierError(f"{MAX_REPLACEMENTS} verifier workers in a row ended before they could look at one answer")

    def _probe(self, worker: WorkerProcess | None, failures: int) -> WorkerProcess | None:
        """Grades an item whose verdict is known, to tell bad items from workers that cannot work."""
        reply, worker = self._ask(worker, _Job(_PROBE, _PROBE_SECONDS))
        if reply.get("verdict", {}).get("status") != "correct" and not self.closed:
            raise VerifierError(
                f"{failures} answers in a row got no verdict, nor did one that is known "
                f"({reply.get('error') or reply}): the verifier's workers cannot work here. Free memory, or give them "
                f"more (memory_mb={self.memory_mb})"
            )
        with self.changed:
            self._failures = 0
        return worker

    def _break(self, reason: str) -> None:
        """From now on nothing can be graded: everyone who waits or asks gets the reason."""
        with self.changed:
            self._broken = self._broken or reason
            waiting = self._drain()
        logger.error("%s", self._broken)
        for job in waiting:
            job.future.set_exception(VerifierError(self._broken))

    # -- processes ----------------------------------------------------------------------------------------------------
    def _take_worker(self) -> WorkerProcess:
        """A warm worker, and a spare one starting behind it. Spares that were killed from outside are passed over;
        when the queue closes meanwhile, a dead one.

        Raises:
            VerifierError: several workers in a row ended before they were ready.
        """
        while True:
            with self.changed:
                worker = self._spares.popleft() if self._spares else self._new_worker()
                if not self._spares and not self.closed:
                    self._spares.append(self._new_worker())
            was_ready = worker.ready
            if worker.wait_ready():
                with self.changed:
                    self._failed_starts = 0
                return worker
            worker.kill()
            reason = worker.why_not_ready()
            with self.changed:
                self._failed_starts += not was_ready
                if self.closed:
                    return worker
                worker.dispose()
                if self._failed_starts >= FAILED_STARTS:
                    raise VerifierError(f"no verifier worker can be started: {reason}")

    def _new_worker(self) -> WorkerProcess:
        worker = WorkerProcess(self.memory_mb)
        self._alive = {other for other in self._alive if other.alive} | {worker}
        return worker

    def _retire(self, worker: WorkerProcess, reason: str) -> None:
        worker.dispose()
        with self.changed:
            self.counts["respawns"] += 1
        logger.info("verifier worker %d replaced after: %s", worker.pid, reason)
