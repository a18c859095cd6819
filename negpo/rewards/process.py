"""One worker process and its pipes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_START_LIMIT = 60.0  # seconds for importing sympy on a busy machine; not charged to any item


class WorkerProcess:
    """``python -m negpo.rewards.worker`` as a child. Not thread-safe: one thread asks, any thread may kill."""

    def __init__(self, memory_mb: int):
        package_root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "negpo.rewards.worker", str(memory_mb)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, close_fds=True,
        )  # fmt: skip
        self._buffer = b""
        self._ready = False
        self.usable = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> bool:
        """Waits until the worker has imported what it needs; False if it is dead."""
        if not self._ready:
            self._ready = bool(self._read_line(_START_LIMIT))
        return self._ready and self._process.poll() is None

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The reply to one request, or ``{"error": why}`` after a timeout or a crash, when ``usable`` turns False.

        The worker must be ready: starting is not charged to an item.
        """
        try:
            stdin = self._process.stdin
            assert stdin is not None
            stdin.write(json.dumps({**request, "timeout": timeout}).encode() + b"\n")
            stdin.flush()
            line = self._read_line(timeout)
        except (BrokenPipeError, OSError, ValueError):
            line = b""
        if line:
            return json.loads(line)
        self.usable = False
        return {"error": f"timeout after {timeout:g} s" if line is None else "the worker crashed"}

    def _read_line(self, timeout: float) -> bytes | None:
        """One line; None after ``timeout`` seconds, b"" at the end of the stream."""
        deadline = time.monotonic() + timeout
        stdout = self._process.stdout
        assert stdout is not None
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                return None
            chunk = os.read(stdout.fileno(), 65_536)
            if not chunk:
                return b""
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def kill(self) -> None:
        """Ends the process and waits for it, so that no zombie stays."""
        self.usable = False
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
