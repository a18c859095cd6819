"""One worker process and its pipes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_BOUND = 60.0  # seconds for importing sympy; not charged to any item
_ITEM_BOUND = 20.0  # the wall-clock bound of an item is this many times its processor time, plus _ITEM_EXTRA
_ITEM_EXTRA = 10.0


def stretched(seconds: float) -> float:
    """A wall-clock bound for a machine that is shared: longer by as much as there is more work than processors."""
    try:
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
    except OSError:
        load = 1.0
    return seconds * max(1.0, load)


@dataclass(frozen=True)
class Outcome:
    """What came of one request. ``reply`` is None where the worker ended; ``started`` tells whether it had begun with
    the item by then, and ``error`` why it ended.
    """

    reply: dict[str, Any] | None
    started: bool
    error: str = ""


class WorkerProcess:
    """``python -m negpo.rewards.worker`` as a child. Not thread-safe: one thread asks, any thread may kill."""

    def __init__(self, memory_mb: int):
        package_root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed by dispose)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "negpo.rewards.worker", str(memory_mb)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, env=environment, close_fds=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        self._buffer = b""
        self.ready = False
        self.items = 0  # requests answered
        self.busy = False  # it has begun with an item and has not answered yet

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self) -> bool:
        """Waits until the worker has imported what it needs; False if it is dead."""
        if not self.ready:
            self.ready = bool(self._read_line(_START_BOUND))
        return self.ready and self.alive

    def why_not_ready(self) -> str:
        """The last thing a worker that did not start had to say."""
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with status {self._process.returncode} and said nothing"

    def ask(self, request: dict[str, Any], timeout: float) -> Outcome:
        """Hands over one request and waits. The worker must be ready: starting is not charged to an item.

        ``timeout`` counts the worker's processor seconds; a wall-clock bound of more than twenty times as much, longer
        on a busy machine, catches a worker that hangs without working.
        """
        bound = _ITEM_BOUND * timeout + _ITEM_EXTRA
        line = json.dumps({**request, "timeout": timeout, "bound": stretched(bound)}).encode() + b"\n"
        try:
            self._write(line, bound)
            started = bool(self._read_line(bound))
            self.busy = started
            reply = self._read_line(bound) if started else b""
        except (OSError, ValueError):  # a broken pipe: it was dead before it could take the item
            return Outcome(None, False, "the worker was gone")
        finally:
            self.busy = False
        if reply:
            self.items += 1
            return Outcome(json.loads(reply), True)
        return Outcome(None, started, self._ending(timeout, timed_out=reply is None))

    def _ending(self, timeout: float, *, timed_out: bool) -> str:
        if not timed_out:  # the stream ended, so the process is ending
            with contextlib.suppress(subprocess.TimeoutExpired):
                timed_out = self._process.wait(5) in {-signal.SIGPROF, -signal.SIGALRM}
        return f"timeout after {timeout:g} s" if timed_out else "the worker crashed"

    def _write(self, data: bytes, bound: float) -> None:
        """Raises OSError when the worker does not take the request, for instance because it is dead or stopped."""
        deadline = time.monotonic() + stretched(bound)
        while data:
            try:
                data = data[os.write(self._input, data) :]
            except BlockingIOError:
                if time.monotonic() > deadline or not self.alive:
                    raise
                self._wait_for(self._input, selectors.EVENT_WRITE, 1.0)

    def _read_line(self, bound: float) -> bytes | None:
        """One line; None after ``bound`` seconds (stretched by the load then), b"" at the end of the stream."""
        started = time.monotonic()
        while b"\n" not in self._buffer:
            left = started + stretched(bound) - time.monotonic()
            if left <= 0:
                return None
            if not self._wait_for(self._output, selectors.EVENT_READ, left):
                continue
            chunk = os.read(self._output, 65_536)
            if not chunk:
                return b""
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    @staticmethod
    def _wait_for(descriptor: int, event: int, seconds: float) -> bool:
        with selectors.DefaultSelector() as selector:  # select() refuses descriptors beyond 1023
            selector.register(descriptor, event)
            return bool(selector.select(seconds))

    def kill(self) -> None:
        """Ends the process and waits for it, so that no zombie stays. Any thread may do so."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()

    def dispose(self) -> None:
        """:meth:`kill`, and closes the pipes: only by the thread that reads them."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
