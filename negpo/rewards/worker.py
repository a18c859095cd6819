"""The grading process: ``python -m negpo.rewards.worker MEMORY_MB``.

Reads one JSON request per line from stdin and writes one JSON reply per line to stdout. It ends when stdin closes,
and the kernel ends it when an item takes longer than its limit plus a grace period, so it never outlives a parent
that was killed. Memory is limited with RLIMIT_AS. Not a sandbox: it evaluates mathematics, never code from a
response.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

GRACE = 2.0  # seconds after which the kernel's alarm ends a worker whose parent did not


def main(argv: list[str]) -> None:
    memory_mb = int(argv[1])
    _limit_memory(memory_mb)
    # Replies leave through a private copy of stdout; whatever a library prints goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # no handler: the kernel ends the process even inside C code
    sys.setrecursionlimit(5000)
    from negpo.rewards import engine

    _send(replies, {"ready": os.getpid()})
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["timeout"] + GRACE)
        _send(replies, _answer(request, engine))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _send(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _answer(request: dict[str, Any], engine: Any) -> dict[str, Any]:
    """The reply to one request; an exception is a reply too, only a hang or a crash leaves none."""
    from negpo.rewards.grader import grade_here

    try:
        if request["op"] == "readable":
            return {"readable": bool(engine.read(request["gold"]))}
        verdict = grade_here(
            request["response"],
            request["gold"],
            kind=request["kind"],
            mode=request["mode"],
            engine=engine.symbolic_equal,
        )
        return {"verdict": verdict.to_dict()} if verdict else {"error": "the comparison could not be decided"}
    except MemoryError:
        return {"error": "memory limit"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


if __name__ == "__main__":
    main(sys.argv)
