"""The grading process: ``python -m negpo.rewards.worker MEMORY_MB``.

Reads one JSON request per line from stdin; for each it writes ``{"started": pid}`` before it looks at the item, and one
JSON reply. It ends when stdin closes. The kernel ends it when one item has used more *processor time* than its limit
(``ITIMER_PROF``: a busy machine does not shorten it), or when the much longer wall-clock bound has passed, so it never
outlives a parent that was killed. ``MEMORY_MB`` is what items may allocate on top of what the imports took
(RLIMIT_AS). Not a sandbox: it evaluates mathematics, never code from a response.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str]) -> None:
    # Replies leave through a private copy of stdout; whatever a library prints goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    # No handlers: the kernel ends the process even inside C code.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    sys.setrecursionlimit(5000)
    from negpo.rewards import engine

    _limit_memory(int(argv[1]))
    _send(replies, {"ready": os.getpid()})
    _close_stderr()
    for line in sys.stdin:
        request = json.loads(line)
        _send(replies, {"started": os.getpid()})
        _set_timers(request["timeout"], request["bound"])
        reply = _answer(request, engine)
        _set_timers(0, 0)
        _send(replies, reply)


def _set_timers(processor: float, wall: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, processor)
    signal.setitimer(signal.ITIMER_REAL, wall)


def _limit_memory(megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # only Linux tells, and only Linux enforces the limit
        return
    limit = pages * resource.getpagesize() + (megabytes << 20)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _close_stderr() -> None:
    """What was written to stderr explains why a worker did not start; afterwards it would only fill the disk."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _send(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _answer(request: dict[str, Any], engine: Any) -> dict[str, Any]:
    """The reply to one request; an exception is a reply too, only a hang or a crash leaves none."""
    from negpo.rewards.decide import grade_here
    from negpo.rewards.options import GradeOptions

    try:
        if request["op"] == "readable":
            return {"readable": bool(engine.read(request["gold"]))}
        verdict = grade_here(
            request["response"],
            request["gold"],
            kind=request["kind"],
            mode=request["mode"],
            options=GradeOptions.from_dict(request["options"]),
            engine=engine.symbolic_equal,
        )
        return {"verdict": verdict.to_dict()} if verdict else {"error": "the comparison could not be decided"}
    except MemoryError:
        return {"error": "memory limit"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


if __name__ == "__main__":
    main(sys.argv)
