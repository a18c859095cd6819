"""The worker pool: hangs, crashes, memory, threads, forks of attention. Workers are real processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from negpo.errors import ConfigError
from negpo.rewards import VerifierPool, default_pool, grade
from negpo.rewards.pool import looks_expensive

HANGING = "\\boxed{\\sum_{k=1}^{\\infty} \\frac{\\sin k}{k^3}}"
SYMBOLIC = "\\boxed{\\int_0^%d x dx}"  # beyond the small parser, quick for math-verify


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(workers=2, timeout=20.0) as shared_pool:
        shared_pool.grade(SYMBOLIC % 1, "1/2")
        yield shared_pool


def test_a_hanging_item_is_unknown_after_its_own_limit(pool):
    started = time.perf_counter()
    verdict = pool.submit(HANGING, "1", timeout=0.5).result()
    assert (verdict.status, verdict.reason) == ("unknown", "timeout after 0.5 s")
    assert time.perf_counter() - started < 0.5 + 5.0  # a busy machine may still be replacing an earlier worker


def test_hanging_items_delay_nobody_else():
    with VerifierPool(workers=2, timeout=20.0) as pool:
        hanging = [pool.grade_future(HANGING, str(n)) for n in range(4)]
        verdicts = pool.grade_many([(SYMBOLIC % k, f"{k * k}/2") for k in range(3, 9)])
        assert all(verdict.correct for verdict in verdicts)
        assert not any(future.done() for future in hanging)


def test_a_killed_worker_is_replaced_and_its_item_is_unknown():
    with VerifierPool(workers=1, timeout=20.0) as pool:
        pool.grade(SYMBOLIC % 1, "1/2")
        future = pool.grade_future(HANGING, "2")
        time.sleep(0.3)
        for pid in pool.worker_pids():
            os.kill(pid, signal.SIGKILL)
        verdict = future.result(timeout=30)
        assert (verdict.status, verdict.reason) == ("unknown", "the worker crashed")
        assert pool.grade(SYMBOLIC % 4, "8").correct
        assert pool.stats()["respawns"] >= 1


def test_a_memory_hog_is_unknown_and_the_next_item_is_answered():
    code = (
        "import sys; sys.argv=['w','400']\n"
        "from negpo.rewards import engine, worker\n"
        "engine.symbolic_equal = lambda gold, pred: bytearray(10**9) and True\n"
        "worker.main(sys.argv)\n"
    )
    asked = {"op": "grade", "response": SYMBOLIC % 1, "gold": "1/2", "kind": None, "mode": "default", "timeout": 20}
    request = json.dumps(asked) + "\n"
    finished = subprocess.run(
        [sys.executable, "-c", code], input=request * 2, capture_output=True, text=True, timeout=60
    )
    replies = finished.stdout.splitlines()[1:]
    assert len(replies) == 2
    assert all("memory limit" in reply for reply in replies)


def test_the_pool_works_from_many_threads_at_once(pool):
    results: dict[int, bool] = {}

    def work(k: int) -> None:
        results[k] = pool.grade(SYMBOLIC % k, f"{k * k}/2").correct and grade("\\boxed{\\frac12}", "0.5").correct

    threads = [threading.Thread(target=work, args=(k,)) for k in range(20, 28)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert results == dict.fromkeys(range(20, 28), True)


def test_batches_keep_their_order_and_counts_add_up():
    with VerifierPool(workers=1) as pool:
        verdicts = pool.grade_many([("\\boxed{1}", "1"), ("\\boxed{1}", "2"), ("", "3"), (SYMBOLIC % 2, "2")])
        assert [verdict.status for verdict in verdicts] == ["correct", "wrong", "wrong", "correct"]
        stats = pool.stats()
        assert (stats["correct"], stats["wrong"]) == (2, 2)
        assert (stats["decided here"], stats["decided in workers"]) == (3, 1)


def test_the_same_answer_to_the_same_question_is_worked_on_once():
    with VerifierPool(workers=1, timeout=1.0) as pool:
        verdicts = pool.grade_many([(f"Attempt {n}: {HANGING}", "7") for n in range(50)])
        assert {verdict.status for verdict in verdicts} == {"unknown"}
        assert pool.stats()["respawns"] == 1


def test_an_event_loop_keeps_running_while_verdicts_are_computed(pool):
    async def main() -> tuple[list[str], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.02)
                ticks += 1

        ticking = asyncio.ensure_future(tick())
        verdicts = await pool.grade_many_async([(SYMBOLIC % 29, "3"), (SYMBOLIC % 30, "450")])
        ticking.cancel()
        return [verdict.status for verdict in verdicts], ticks

    statuses, ticks = asyncio.run(main())
    assert statuses == ["wrong", "correct"]
    assert ticks >= 1


def test_null_bytes_and_lone_surrogates_reach_a_worker_unharmed(pool):
    assert pool.grade("\x00 \ud800 " + SYMBOLIC % 40, "800").correct


def test_workers_do_not_outlive_a_killed_parent():
    code = (
        "import time\nfrom negpo.rewards import VerifierPool\n"
        "pool = VerifierPool(workers=1, timeout=2)\n"
        f"pool.grade({SYMBOLIC % 1!r}, '1/2')\n"
        f"pool.grade_future({HANGING!r}, '1')\n"
        "print(*pool.worker_pids(), flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert pids
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_worker_never_imports_torch():
    code = "import sys, negpo.rewards.worker, negpo.rewards.engine, negpo.rewards.grader; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_grading_installs_no_signal_handler():
    before = [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGINT)]
    grade(SYMBOLIC % 50, "1250")
    assert [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGINT)] == before


def test_closing_turns_waiting_items_into_unknown():
    pool = VerifierPool(workers=1, timeout=30)
    futures = [pool.grade_future(HANGING, str(n)) for n in range(100, 104)]
    pool.close()
    assert {future.result(timeout=10).status for future in futures} == {"unknown"}
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade(HANGING, "5")


def test_the_default_pool_is_one_and_comes_back_after_closing():
    first = default_pool()
    assert default_pool() is first
    first.close()
    assert default_pool() is not first


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"timeout": 0}, {"memory_mb": 10}])
def test_impossible_limits_are_refused(arguments):
    with pytest.raises(ConfigError, match="need"):
        VerifierPool(**arguments)


def test_towers_and_sums_look_expensive_and_plain_answers_do_not():
    assert looks_expensive(HANGING)
    assert not looks_expensive(SYMBOLIC % 3)
