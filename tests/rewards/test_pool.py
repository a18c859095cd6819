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

from negpo.errors import ConfigError, VerifierError
from negpo.rewards import Verdict, VerifierPool, default_pool, grade, workers
from negpo.rewards.pool import looks_expensive
from negpo.rewards.process import Outcome

HANGING = "\\boxed{\\sum_{k=1}^{\\infty} \\frac{\\sin k}{k^3}}"
SYMBOLIC = "\\boxed{\\int_0^%d x dx}"  # beyond the small parser, quick for math-verify


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(workers=2, timeout=20.0) as shared_pool:
        shared_pool.grade(SYMBOLIC % 1, "1/2")
        yield shared_pool


def pid_at_work(pool) -> int:
    """The worker that has begun with an item; waits until there is one."""
    deadline = time.monotonic() + 60
    while not (pids := pool.worker_pids(busy=True)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return pids[0]


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
        os.kill(pid_at_work(pool), signal.SIGKILL)
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
    asked = {"op": "grade", "response": SYMBOLIC % 1, "gold": "1/2", "kind": None, "mode": "default", "options": {}}
    request = json.dumps(asked | {"timeout": 20, "bound": 60}) + "\n"
    finished = subprocess.run(
        [sys.executable, "-c", code], input=request * 2, capture_output=True, text=True, timeout=60
    )
    replies = [line for line in finished.stdout.splitlines()[1:] if "started" not in line]
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


# -- whose fault an unknown verdict is ---------------------------------------------------------------------------------


def kill_all(pool) -> None:
    for pid in pool.worker_pids():
        os.kill(pid, signal.SIGKILL)


def wait_until_dead(pids) -> None:
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_running(pid) for pid in pids)


def test_workers_killed_while_idle_cost_no_verdict():
    with VerifierPool(workers=1, timeout=20.0) as pool:
        pool.grade(SYMBOLIC % 1, "1/2")
        for k in range(60, 64):
            pids = pool.worker_pids()
            kill_all(pool)
            wait_until_dead(pids)
            assert pool.grade(SYMBOLIC % k, f"{k * k}/2").correct
        assert "unknown" not in pool.stats()
        assert pool.stats()["respawns"] >= 4


def test_a_limit_counts_the_workers_own_processor_time():
    with VerifierPool(workers=1, timeout=20.0) as pool:
        pool.grade(SYMBOLIC % 1, "1/2")
        pids = pool.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        future = pool.submit(SYMBOLIC % 70, "2450", timeout=0.5)
        time.sleep(1.0)  # twice the limit passes without any work done
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert future.result(timeout=60).correct
        assert pool.submit(HANGING, "5", timeout=0.3).result().reason == "timeout after 0.3 s"


def test_the_smallest_memory_limit_that_is_accepted_can_grade():
    with VerifierPool(workers=1, timeout=20.0, memory_mb=256) as pool:
        assert pool.grade(SYMBOLIC % 80, "3200").correct


def test_a_pool_whose_workers_cannot_start_says_why_and_stays_broken(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('math_verify is broken here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with VerifierPool(workers=1) as pool:
        with pytest.raises(VerifierError, match=r"no verifier worker can be started: .*math_verify is broken here"):
            pool.grade(SYMBOLIC % 1, "1/2")
        with pytest.raises(VerifierError, match="no verifier worker can be started"):
            pool.grade(SYMBOLIC % 2, "2")


class FakeWorker:
    """A worker that begins with every item and then dies, or answers only what ``answers`` names."""

    made = 0

    def __init__(self, memory_mb: int, answers=()):
        FakeWorker.made += 1
        self.pid, self.items, self.alive, self.ready, self.busy = FakeWorker.made, 0, True, True, False
        self.answers = answers

    def wait_ready(self) -> bool:
        return self.alive

    def ask(self, request, timeout) -> Outcome:
        if request["gold"] in self.answers:
            return Outcome({"verdict": Verdict("correct", "").to_dict()}, True)
        return Outcome(None, True, "the worker crashed")

    def kill(self) -> None:
        self.alive = False

    dispose = kill


def test_workers_that_fail_at_everything_end_the_run_after_a_bounded_number_of_items(monkeypatch):
    monkeypatch.setattr(workers, "WorkerProcess", FakeWorker)
    with VerifierPool(workers=1) as pool:
        futures = [pool.submit(SYMBOLIC % k, "1") for k in range(workers.FAILURES_BEFORE_PROBE)]
        assert {future.result().reason for future in futures} == {"the worker crashed"}
        later = iter(range(100, 200))  # the probe runs behind the last item
        with pytest.raises(VerifierError, match="25 answers in a row got no verdict, nor did one that is known"):
            next(future for k in later if (future := pool.submit(SYMBOLIC % k, "1")).exception()).result()


def test_items_that_fail_do_not_condemn_workers_that_can_work(monkeypatch):
    monkeypatch.setattr(workers, "WorkerProcess", lambda memory_mb: FakeWorker(memory_mb, answers={r"\frac12"}))
    with VerifierPool(workers=1) as pool:
        verdicts = [pool.submit(SYMBOLIC % k, "1").result() for k in range(3 * workers.FAILURES_BEFORE_PROBE)]
        assert {verdict.reason for verdict in verdicts} == {"the worker crashed"}


def test_memory_that_earlier_items_left_occupied_is_not_this_items_doing(monkeypatch):
    class Leaking(FakeWorker):
        def ask(self, request, timeout) -> Outcome:
            self.items += 1
            full = self.items > 1 or request["gold"] == "too large"
            return Outcome({"error": "memory limit"} if full else {"verdict": Verdict("correct", "").to_dict()}, True)

    monkeypatch.setattr(workers, "WorkerProcess", Leaking)
    with VerifierPool(workers=1) as pool:
        golds = ["1", "2", "too large", "3"]
        statuses = [pool.submit(SYMBOLIC % 1, gold).result().status for gold in golds]
        assert statuses == ["correct", "correct", "unknown", "correct"]


def test_a_pool_used_after_a_fork_says_so():
    pool = VerifierPool(workers=1)
    pool._queue._owner = -1
    with pytest.raises(RuntimeError, match="belongs to process -1"):
        pool.grade(SYMBOLIC % 1, "1/2")
