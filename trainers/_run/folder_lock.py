"""One run per output folder: a second one would mix its weights with the optimiser of the first."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from negpo.errors import ConfigError

logger = logging.getLogger(__name__)
LOCK = ".negpo_run.lock"
SILENT = 3600.0  # seconds without a sign after which a run on another host is taken for dead
BEAT = 30.0  # seconds between signs


class FolderLock(TrainerCallback):
    """Held by the main process from the first step to the last; its file's time is the run's last sign of life."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.path = Path(trainer.args.output_dir) / LOCK
        self._beaten = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        if state.is_world_process_zero and now - self._beaten > BEAT and self.path.exists():
            os.utime(self.path)
            self._beaten = now

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around training. ConfigError, on every process, when a living run holds the folder."""
        problem: list[str | None] = [None]
        if self.trainer.is_world_process_zero():
            problem[0] = acquire(self.path)
        if self.trainer.accelerator.num_processes > 1:
            broadcast_object_list(problem)
        if problem[0]:
            raise ConfigError(problem[0])
        try:
            yield
        finally:
            if self.trainer.is_world_process_zero():
                self.path.unlink(missing_ok=True)


def acquire(path: Path) -> str | None:
    """Take the lock; a text that says who holds it when it cannot be had. A dead holder's lock is taken over."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
    for _ in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "x", encoding="utf-8") as file:
                json.dump(mine, file)
            return None
        except FileExistsError:
            pass
        except OSError as error:
            return f"output_dir {path.parent} cannot be written: {error.strerror}"
        if (holder := _living(path)) is not None:
            return (
                f"another run writes into output_dir {path.parent}: {holder}. Wait for it, stop it, or choose another "
                f"output_dir. (If there is no such run, delete {path})"
            )
        logger.warning("taking over %s: the run that held it is gone", path)
        path.unlink(missing_ok=True)
    return f"output_dir {path.parent} is taken by another run that started in this moment; choose another output_dir"


def _living(path: Path) -> str | None:
    """Who holds the lock, None when nobody that lives does."""
    try:
        age = time.time() - path.stat().st_mtime
        holder = json.loads(path.read_text(encoding="utf-8"))
        host, pid, born = str(holder["host"]), int(holder["pid"]), holder["born"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"its lock cannot be read and is {age:.0f} s old" if age < BEAT else None
    here = host == socket.gethostname()
    alive = pid != os.getpid() and _born(pid) == born if here else age < SILENT
    return f"process {pid} on {host}, last sign {age:.0f} s ago" if alive else None


def _born(pid: int) -> float | None:
    """When a process began, None for one that is gone: numbers are used again."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 1)
    except psutil.Error:
        return None
