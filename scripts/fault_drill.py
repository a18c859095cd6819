#!/usr/bin/env python
"""Break training in every way that happens, at random moments, resume it, and compare with a run nothing happened to.

    python scripts/fault_drill.py                                   # every fault ten times
    python scripts/fault_drill.py --faults sigterm,torn --times 3 --seed 7

Two gloo ranks under torch's elastic agent train a tiny model with NPO on retain rows (the engine fault: NSR). A moment
is drawn as a checkpoint that must exist and a fraction of a second after it. Counted are:

    detected    the run ended by itself, with the exit status that belongs to the fault
    explained   its output says what happened (and for a hang: which rank, and where)
    resumed     the same command with --resume_from_checkpoint auto ran to its end
    intact      the final weights are the uninterrupted run's, bit for bit

Faults: killed (SIGKILL of one rank), sigterm (to the launcher), disk (the output folder's file system fills up; needs
root for a tmpfs, else a limit on file sizes stands in), hang (one rank stops: by SIGSTOP, or asleep in Python code),
torn (the newest checkpoint is cut, changed or loses a file), engine (the process that draws rollouts is killed in one).
Ranks are forked from this process, which has imported everything, so that a run takes seconds. Ends with status 1 when
a number in the table is not full.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from _fault_runs import PATIENCE, STEPS, Run, import_everything, start, write_inputs

COLUMNS = ("detected", "explained", "resumed", "intact")
EXPECTED = {  # exit status of the launcher, what its output must say
    "killed": (137, r"was killed by signal 9"),
    "sigterm": (143, r"SIGTERM: stopped after step \d+, saved as .*checkpoint-\d+"),
    "disk": (2, r"(No space left on device|File too large).*The last complete checkpoint is .*checkpoint-\d+"),
    "hang": (124, r"the run hangs\. (rank \d is silent|not waiting: rank \d)"),
    "torn": (0, r"not resuming from .*checkpoint-\d+: "),
    "engine": (2, r"the rollout engine .* failed in the rollout after step \d+: .*resume from .*checkpoint-\d+"),
}


@dataclass
class Drill:
    """Where the runs live and what they share."""

    out: Path
    rng: random.Random
    mounted: list[Path] = field(default_factory=list)


def main() -> int:
    args = parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "20"}
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    import_everything()
    drill = Drill(args.out, random.Random(args.seed))
    write_inputs(args.out)
    whole = {method: finished(drill, method) for method in {method_of(fault) for fault in args.faults}}
    counts = {fault: dict.fromkeys(COLUMNS, 0) for fault in args.faults}
    try:
        for fault in args.faults:
            for number in range(args.times):
                for name, good in drill_once(drill, fault, number, whole[method_of(fault)]).items():
                    counts[fault][name] += good
                print(f"{fault} {number + 1}/{args.times}: {counts[fault]}", file=sys.stderr, flush=True)
    finally:
        for folder in drill.mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
    print(table(counts, args.times))
    (args.out / "results.json").write_text(json.dumps({"times": args.times, "seed": args.seed, "counts": counts}))
    return int(any(value < args.times for row in counts.values() for value in row.values()))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default=",".join(EXPECTED), help=f"of {', '.join(EXPECTED)}")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/fault-drill"), help="deleted first")
    args = parser.parse_args()
    args.faults = args.faults.split(",")
    if unknown := set(args.faults) - set(EXPECTED):
        parser.error(f"--faults: unknown {', '.join(sorted(unknown))}")
    args.out = args.out.resolve()
    return args


def drill_once(drill: Drill, fault: str, number: int, whole: bytes) -> dict[str, bool]:
    """One fault at one random moment, and the resumed run."""
    folder = drill.out / f"{fault}-{number}"
    if fault == "disk":
        make_small_disk(drill, folder)
    limit = fault == "disk" and not drill.mounted
    run = start(drill.out, method_of(fault), folder, limit_files=limit, hangs=fault == "hang")
    step, delay = drill.rng.randint(1, STEPS - 2), drill.rng.uniform(0.0, 0.3)
    status, said = None, ""
    if run.reach(step):
        time.sleep(delay)
        HURT[fault](drill, run, number)
        status, said = run.wait(), run.log.read_text(errors="replace")
    if fault == "torn":
        status = 0  # the fault is found by the run that resumes
    mend(fault, folder)
    again = start(drill.out, method_of(fault), folder)
    resumed = again.wait() == 0
    said += again.log.read_text(errors="replace")
    expected, words = EXPECTED[fault]
    result = {
        "detected": status == expected,
        "explained": re.search(words, said, re.DOTALL) is not None and (fault != "hang" or blames_victim(run, said)),
        "resumed": resumed and "train_runtime" in said,
        "intact": resumed and final(folder) == whole,
    }
    if not all(result.values()):
        print(f"{fault} {number}: status {status}, {result}, see {run.log}", file=sys.stderr, flush=True)
    return result


def blames_victim(run: Run, said: str) -> bool:
    """Whether the rank that the report of a hang names is the one that was stopped."""
    processes = dict(re.findall(r"negpo:   rank (\d) \(.*?process (\d+)\)", said))
    blamed = re.findall(r"rank (\d) is silent|not waiting: rank (\d)", said)
    ranks = {silent or awake for silent, awake in blamed}
    others = {pid for rank, pid in processes.items() if rank not in ranks}
    return (
        len(ranks) == 1 and str(run.victim) not in others and processes.get(*ranks, str(run.victim)) == str(run.victim)
    )


# ---- faults ---------------------------------------------------------------------------------------------------------


def kill_rank(drill: Drill, run: Run, number: int) -> None:
    signal_rank(drill, run, signal.SIGKILL)


def terminate(drill: Drill, run: Run, number: int) -> None:
    os.kill(run.process.pid, signal.SIGTERM)


def stop_rank(drill: Drill, run: Run, number: int) -> None:
    signal_rank(drill, run, signal.SIGSTOP if number % 2 else signal.SIGUSR1)


def signal_rank(drill: Drill, run: Run, number: signal.Signals) -> None:
    ranks = run.ranks()
    if ranks:
        run.victim = drill.rng.choice(ranks)
        os.kill(run.victim, number)


def fill_disk(drill: Drill, run: Run, number: int) -> None:
    """Leave less than a checkpoint needs. Without a file system of its own, limit_files has done it already."""
    if run.folder in drill.mounted:
        free = shutil.disk_usage(run.folder).free
        with contextlib.suppress(OSError):  # the run writes too and may take what is left
            (run.folder / "filler").write_bytes(bytes(max(0, free - drill.rng.randint(0, 100_000))))


def tear(drill: Drill, run: Run, number: int) -> None:
    """Kill the run and damage its newest complete checkpoint."""
    os.kill(run.process.pid, signal.SIGTERM)
    run.wait()
    newest = max(run.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    files = sorted(path for path in newest.iterdir() if path.is_file() and path.stat().st_size)
    path = drill.rng.choice(files)
    kind = drill.rng.choice(("cut", "changed", "deleted"))
    if kind == "deleted":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    place = drill.rng.randrange(len(data))
    data[place] ^= 0xFF
    path.write_bytes(data[:place] if kind == "cut" else data)


def kill_engine(drill: Drill, run: Run, number: int) -> None:
    """The process of rank 0's engine, while it draws."""
    busy = run.folder / "engine-busy"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and run.process.exitcode is None:
        try:
            os.kill(int(busy.read_text()), signal.SIGKILL)
            return
        except (OSError, ValueError):
            time.sleep(0.001)


HURT = {"killed": kill_rank, "sigterm": terminate, "hang": stop_rank, "disk": fill_disk, "torn": tear}
HURT |= {"engine": kill_engine}


def make_small_disk(drill: Drill, folder: Path) -> None:
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode == 0:
        drill.mounted.append(folder)


def mend(fault: str, folder: Path) -> None:
    (folder / "filler").unlink(missing_ok=True)
    (folder / "engine-busy").unlink(missing_ok=True)


# ---- runs ------------------------------------------------------------------------------------------------------------


def method_of(fault: str) -> str:
    return "nsr" if fault == "engine" else "npo"


def finished(drill: Drill, method: str) -> bytes:
    """The weights of a run that nothing happens to."""
    run = start(drill.out, method, drill.out / f"whole-{method}")
    if run.wait() != 0:
        sys.exit(f"a run without any fault fails, see {run.log}")
    return final(run.folder)


def final(folder: Path) -> bytes:
    path = folder / "model.safetensors"
    return path.read_bytes() if path.is_file() else b""


def table(counts: dict[str, dict[str, int]], times: int) -> str:
    lines = [f"| fault, {times} times each | {' | '.join(COLUMNS)} |", f"|---|{'--:|' * len(COLUMNS)}"]
    lines += [f"| {fault} | {' | '.join(str(row[name]) for name in COLUMNS)} |" for fault, row in counts.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
