"""A run that makes no progress ends, and says which rank stopped where.

In a hung collective every rank but one waits inside torch.distributed, without a word, for as long as the backend
allows. A thread in each rank notices that no micro-batch was finished, writes the rank's stack to
``OUTPUT_DIR/stacks/rank-N.txt``, reads those of the others and names the ranks that are not waiting.
"""

import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

EXIT_STATUS = 124
GRACE_SECONDS = 10.0  # for the other ranks to write theirs: they began to wait at slightly different moments
# Innermost Python file of a rank that waits for others: collectives, DDP's buffers, gradients reduced in backward.
WAITING = tuple(f"{os.sep}{name}{os.sep}" for name in ("torch/distributed", "torch/nn/parallel", "torch/autograd"))
WAITING += (f"{os.sep}deepspeed{os.sep}",)


class HangWatch(TrainerCallback):
    """Ends the process with EXIT_STATUS after ``args.hang_timeout`` seconds without a beat; 0 switches it off.

    Beats are finished micro-batches, optimiser steps, logs, checkpoints and drawn completions. By default it comes
    before ``ddp_timeout``, after which the backend would end the run without naming anyone, and only with several
    processes: one alone waits for nobody, except for a person at a breakpoint.
    """

    def __init__(self, trainer: Any):
        self.trainer, limit = trainer, trainer.args.hang_timeout
        alone = trainer.accelerator.num_processes == 1
        self.limit = float(limit if limit is not None else 0.0 if alone else 0.8 * trainer.args.ddp_timeout)
        self._last = time.monotonic()

    def beat(self, *_: Any) -> None:
        self._last = time.monotonic()

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self.beat()

    on_step_begin = on_step_end = on_log = on_save = on_prediction_step = on_evaluate = on_substep_end

    @contextmanager
    def watching(self) -> Iterator[None]:
        if self.limit <= 0:
            yield
            return
        self.beat()
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done,), daemon=True, name="negpo hang watch").start()
        try:
            yield
        finally:
            done.set()

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(min(1.0, self.limit / 4)):
            if time.monotonic() - self._last > self.limit:
                self._report()
                os._exit(EXIT_STATUS)  # the main thread cannot be interrupted inside a collective

    def _report(self) -> None:
        rank, world = self.trainer.accelerator.process_index, self.trainer.accelerator.num_processes
        folder = Path(self.trainer.args.output_dir) / "stacks"
        folder.mkdir(parents=True, exist_ok=True)
        silent = time.monotonic() - self._last
        started = time.time() - silent  # files of an earlier hang are older
        line = (
            f"rank {rank} ({socket.gethostname()}, process {os.getpid()}) after step {self.trainer.state.global_step}"
        )
        line += f", {silent:.0f} s without progress, {where(_main_stack())}"
        with open(folder / f"rank-{rank}.txt", "w", encoding="utf-8") as file:
            file.write(line + "\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and len(reports(folder, world, started)) < world:
            time.sleep(0.2)
        found = reports(folder, world, started)
        if rank == min(found):
            print(f"negpo: {summary(found, world)}\nnegpo: stacks of all ranks: {folder}", file=sys.stderr, flush=True)
        time.sleep(1.0)  # the launcher ends all ranks as soon as one is gone: let the summary out first


def _main_stack() -> list[traceback.FrameSummary]:
    main = threading.main_thread().ident
    assert main is not None
    return list(traceback.extract_stack(sys._current_frames()[main]))


def where(stack: list[traceback.FrameSummary]) -> str:
    """One phrase for a stack, outermost frame first: in a collective called from somewhere, or stuck elsewhere."""
    innermost = stack[-1]
    if not any(part in innermost.filename for part in WAITING):
        return f"at {_place(innermost)}"
    caller = next((frame for frame in reversed(stack) if "negpo" in frame.filename), stack[0])
    return f"waiting in a collective ({innermost.name}) called from {_place(caller)}"


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.name} ({frame.filename}:{frame.lineno})"


def reports(folder: Path, world: int, since: float) -> dict[int, str]:
    """First lines of the stack files written after ``since`` (seconds since the epoch), by rank."""
    found = {}
    for rank in range(world):
        path = folder / f"rank-{rank}.txt"
        if path.is_file() and path.stat().st_mtime >= since:
            found[rank] = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return found


def summary(found: dict[int, str], world: int) -> str:
    """What all ranks were doing, and whom the others wait for."""
    absent = [f"rank {rank} is silent: stopped, or its machine is gone" for rank in range(world) if rank not in found]
    stuck = [line for line in found.values() if "waiting in a collective" not in line]
    blame = absent or [f"not waiting: {line.split(' (')[0]}" for line in stuck]
    blame = blame or ["all ranks wait, in different collectives or for a network that is gone"]
    return "the run hangs. " + "; ".join(blame) + "".join(f"\nnegpo:   {line}" for line in found.values())
