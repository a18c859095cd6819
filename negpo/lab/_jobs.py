"""Run a few Python modules side by side as child processes, one thread each, with progress.

A child talks to its parent through standard output: a line `PROGRESS_MARK done total text` moves its bar. Everything
else, and standard error, goes to its log file. Processes, not forks or pools: a child that dies takes nothing with it,
and the parent may be any script.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from negpo.errors import NegpoError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PROGRESS_MARK = "@@progress"
CHILD = "NEGPO_LAB_CHILD"  # environment variable: somebody reads this process's progress lines
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """One child process: `python -m module *arguments`, its name in the display, its log file."""

    name: str
    module: str
    arguments: tuple[str, ...]
    log: Path


def report_progress(done: int, total: int, text: str = "") -> None:
    """Called inside a child: move its bar in the parent's display."""
    print(PROGRESS_MARK, done, total, text, flush=True)


def single_thread_environment() -> dict[str, str]:
    """Environment of a child: one compute thread, no network, this very package."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]))
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", CHILD: "1"}
    return {**os.environ, **threads, **offline, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def run_jobs(jobs: Sequence[Job], *, workers: int, title: str) -> None:
    """Run `jobs`, at most `workers` at once, until all have ended. Within a child, they move the bar of the child.

    Raises:
        NegpoError: at least one job failed; names it, its log file and the last lines of it. The others still finish.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    failures: list[str] = []
    running: list[subprocess.Popen] = []
    slots = threading.Semaphore(workers)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
    nested = CHILD in os.environ
    with Progress(*columns, disable=nested or not jobs) as progress:

        def work(job: Job) -> None:
            with slots:
                name = f"{title} {job.name}".strip()
                bar = progress.add_task(name, total=None, text="starting")
                child = _start(job)
                running.append(child)
                status = _follow(child, job, partial(_forward, name) if nested else partial(_move, progress, bar))
                progress.update(bar, text="failed" if status else "done", visible=True)
                if status:
                    failures.append(f"{job.name} ended with status {status}; the end of {job.log}:\n{_tail(job.log)}")

        threads = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # an interrupt of the parent ends the children
            for child in running:
                child.terminate()
    if failures:
        raise NegpoError("\n".join(failures))


def _start(job: Job) -> subprocess.Popen:
    """Start one child; standard error goes to its log, standard output is read by `_follow`."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", job.module, *job.arguments]
    with job.log.open("w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=single_thread_environment())


def _follow(child: subprocess.Popen, job: Job, on_progress: Callable[[int, int, str], None]) -> int:
    """Read the child's output to its end; progress lines move the bar, others go to the log. Returns its status."""
    assert child.stdout is not None
    with job.log.open("a", encoding="utf-8") as log:
        for line in child.stdout:
            mark, _, rest = line.rstrip("\n").partition(" ")
            if mark != PROGRESS_MARK:
                log.write(line)
                continue
            done, total, *text = rest.split(" ", 2)
            on_progress(int(done), int(total), text[0] if text else "")
    return child.wait()


def _move(progress: Progress, bar: TaskID, done: int, total: int, text: str) -> None:
    progress.update(bar, completed=done, total=total, text=text)


def _forward(name: str, done: int, total: int, text: str) -> None:
    report_progress(done, total, f"{name}: {text}")


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
