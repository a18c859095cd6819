#!/usr/bin/env python
"""Kill a reinforcement-learning run with SIGKILL at random moments, resume it until it ends, compare the weights.

    python scripts/kill_drill_rl.py                                  # 30 steps of NSR, 5 kills
    python scripts/kill_drill_rl.py --method ngrpo --recipe ngrpo/lab --steps 12 --kills 2

Both runs are `negpo train` on the tiny arithmetic lab and save after every optimiser step. A moment is a step, drawn at
random, and a delay after its checkpoint folder appears, drawn from the length of two steps: kills fall into rollouts,
updates and half-written checkpoints alike, on any machine. Ends with status 1 when a weight or a logged loss differs.
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
from pathlib import Path

from negpo.lab.arithmetic_build import ArithmeticLabPaths, build_arithmetic_lab

POLL_SECONDS = 0.005
COMPARED = ("loss", "grad_norm", "reward", "policy/kl")  # of every step's log; times differ of course


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/kill-drill-rl"), help="its two runs are deleted first")
    parser.add_argument("--method", default="nsr")
    parser.add_argument("--recipe", default="nsr/lab")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    lab = build_arithmetic_lab(args.out / "labs", 0, "tiny")
    killed, whole = args.out / "killed", args.out / "whole"
    for folder in (killed, whole):
        shutil.rmtree(folder, ignore_errors=True)

    finish(training(lab, whole, args))
    rng = random.Random(args.seed)
    span = 2 * seconds_per_step(whole)  # so the last three steps are left out: a run must not end before its kill
    moments = sorted((rng.randrange(1, args.steps - 2), rng.uniform(0, span)) for _ in range(args.kills))
    found = [kill_at(training(lab, killed, args), killed, *moment) for moment in moments]
    finish(training(lab, killed, args))
    return report(killed, whole, moments, found)


def training(lab: ArithmeticLabPaths, folder: Path, args: argparse.Namespace) -> subprocess.Popen:
    """Start, or continue, the training in `folder`."""
    command = [sys.executable, "-m", "negpo", "train", args.method, "--config", args.recipe]
    command += ["--model_name_or_path", str(lab.model), "--dataset", str(lab.data / "train.jsonl")]
    command += ["--output_dir", str(folder), "--max_steps", str(args.steps), "--resume_from_checkpoint", "auto"]
    command += ["--save_strategy", "steps", "--save_steps", "1", "--disable_tqdm", "true", "--report_to", "none"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_at(process: subprocess.Popen, folder: Path, step: int, delay: float) -> str:
    """SIGKILL `delay` seconds after the checkpoint of `step` is there; returns what the kill left behind."""
    while process.poll() is None and not (folder / f"checkpoint-{step}").exists():
        time.sleep(POLL_SECONDS)
    time.sleep(delay)
    if process.poll() is not None:
        sys.exit(f"the training ended with status {process.returncode} before its kill:\n{process.communicate()[1]}")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = sorted(checkpoint_number(path) for path in folder.glob("checkpoint-*"))
    complete = (folder / f"checkpoint-{steps[-1]}" / "negpo_checkpoint.json").exists()
    return f"checkpoint {steps[-1]} {'complete' if complete else 'half-written'}"


def checkpoint_number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def finish(process: subprocess.Popen) -> None:
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(f"the training ended with status {process.returncode}:\n{errors}")


def seconds_per_step(folder: Path) -> float:
    """Mean time between two checkpoints of a finished run."""
    times = sorted(path.stat().st_mtime for path in folder.glob("checkpoint-*"))
    return (times[-1] - times[0]) / max(1, len(times) - 1)


def logged(folder: Path) -> list[dict[str, float]]:
    """The compared numbers of every step."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [{name: entry.get(name) for name in COMPARED} for entry in history if "loss" in entry]


def report(killed: Path, whole: Path, moments: list[tuple[int, float]], found: list[str]) -> int:
    """Print what was found; 0 if the interrupted run equals the other one."""
    from safetensors.torch import load_file

    for (step, delay), state in zip(moments, found, strict=True):
        print(f"killed {delay:.2f} s after checkpoint {step} appeared; newest: {state}")
    weights = [load_file(folder / "model.safetensors") for folder in (killed, whole)]
    differing = [name for name in weights[1] if not weights[0][name].equal(weights[1][name])]
    same_names = weights[0].keys() == weights[1].keys()
    logs = [logged(folder) for folder in (killed, whole)]
    steps = [step for step, pair in enumerate(zip(*logs, strict=False), start=1) if pair[0] != pair[1]]
    print(f"tensors: {len(weights[1])}, not bit-equal: {len(differing)}; steps whose log differs: {steps or 'none'}")
    return 0 if same_names and not differing and not steps and len(logs[0]) == len(logs[1]) else 1


if __name__ == "__main__":
    sys.exit(main())
