#!/usr/bin/env python
"""Kill an evaluation with SIGKILL at random moments, resume it until it ends, compare with an uninterrupted run.

    python scripts/kill_drill_eval.py                                     # 500 problems x 16 samples, 5 kills
    python scripts/kill_drill_eval.py --size tiny --problems 10 --samples 4 --kills 2

Both runs are `negpo eval custom` on the arithmetic lab. Moments are drawn in lines of samples.jsonl, not in seconds, so
that every kill falls inside the work on any machine. Ends with status 1 when a sample was drawn twice or never, or when
the two summaries differ.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from negpo.data.io import read_jsonl
from negpo.lab.arithmetic_build import ArithmeticLabPaths, build_arithmetic_lab

POLL_SECONDS = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/kill-drill"), help="its two runs are deleted first")
    parser.add_argument("--size", default="default", help="of the lab: default or tiny")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    lab = build_arithmetic_lab(args.out / "labs", 0, args.size)
    killed, whole = args.out / "killed", args.out / "whole"
    for folder in (killed, whole):
        shutil.rmtree(folder, ignore_errors=True)

    total = args.problems * args.samples
    # The last tenth is left out: a run could end between its last look and its kill.
    moments = sorted(random.Random(args.seed).sample(range(1, total * 9 // 10), args.kills))
    started = time.perf_counter()
    for moment in moments:
        kill_at(evaluation(lab, killed, args), killed / "samples.jsonl", moment)
    finish(evaluation(lab, killed, args))
    between = time.perf_counter()
    finish(evaluation(lab, whole, args))
    seconds = (between - started, time.perf_counter() - between)
    return report(killed, whole, moments, total, seconds)


def evaluation(lab: ArithmeticLabPaths, folder: Path, args: argparse.Namespace) -> subprocess.Popen:
    """Start, or continue, the evaluation in `folder`."""
    command = [sys.executable, "-m", "negpo", "eval", "custom", "--benchmark-file", str(lab.benchmark)]
    command += ["--model", str(lab.model), "--protocol", "lab", "--out", str(folder)]
    command += ["--n", str(args.samples), "--limit", str(args.problems)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_at(process: subprocess.Popen, log: Path, lines: int) -> None:
    """SIGKILL once `log` holds at least `lines` lines."""
    while process.poll() is None and count_lines(log) < lines:
        time.sleep(POLL_SECONDS)
    if process.poll() is not None:
        sys.exit(f"the evaluation ended with status {process.returncode} before its kill:\n{process.communicate()[1]}")
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finish(process: subprocess.Popen) -> None:
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(f"the evaluation ended with status {process.returncode}:\n{errors}")


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def report(killed: Path, whole: Path, moments: list[int], total: int, seconds: tuple[float, float]) -> int:
    """Print what was found; 0 if the interrupted run equals the other one."""
    rows = [read_jsonl(folder / "samples.jsonl") for folder in (killed, whole)]
    drawn = Counter((row["problem"], row["sample"]) for row in rows[0])
    texts = [{(row["problem"], row["sample"]): row["text"] for row in side} for side in rows]
    twice = sum(drawn.values()) - len(drawn)
    different = sum(texts[0].get(key) != text for key, text in texts[1].items())
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in (killed, whole)]
    equal = summaries[0] == summaries[1]
    print(f"killed after samples {', '.join(map(str, moments))} of {total}")
    print(f"samples drawn twice: {twice}; missing: {total - len(drawn)}; texts that differ: {different}")
    print(f"summary.json equal: {'yes' if equal else 'no'}; pass@1 {summaries[0]['pass_at_k'][0]['value']:.4f}")
    print(f"seconds: {seconds[0]:.1f} with {len(moments)} restarts, {seconds[1]:.1f} uninterrupted")
    return 0 if equal and not twice and len(drawn) == total else 1


if __name__ == "__main__":
    sys.exit(main())
