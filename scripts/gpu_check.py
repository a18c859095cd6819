#!/usr/bin/env python3
"""Everything that needs a GPU, measured in one command of at most eight minutes, without a network.

    python scripts/gpu_check.py --json gpu_check.json --out gpu_tables.md      # one H100 or H200
    python scripts/gpu_check.py --rehearse                                     # toy sizes on a CPU, about two minutes

Parts, each in a process of its own with its own time limit:

    a  log-prob core against full logits, TRL, Liger, torch.compile: time, memory, error to float64; the device's rates
    b  steps of NPO with retain, REDI, DPO, NSR and GRPO in bf16, with and without checkpointing; the usual formulas;
       TRL's GRPO trainer; peaks beside the forecast of `negpo plan` (part d of the issue)
    c  LoRA and QLoRA
    e  vLLM: throughput, verified sync, sleep and wake, CUDA graphs
    f  loss curves of 50 NPO steps, bf16 against float32

Every result is on disk before the next one starts: a part that runs out of time keeps what it had. What cannot run is
recorded with its reason. Models have random weights in published shapes; SmolLM2's real ones are used from
`--models FOLDER/smollm2` if they lie there. The JSON is appended to after each part, `--out` writes the tables.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Seconds per part; 460 in all, which leaves 20 for the starts.
PARTS = {"a": 140, "b": 130, "c": 50, "e": 90, "f": 50}
REHEARSAL_LIMIT = 300


def main() -> int:
    args = parse_args()
    if args.child:
        return child(args)
    import torch

    if not args.rehearse and not torch.cuda.is_available():
        print("gpu_check: torch finds no CUDA GPU; --rehearse runs all parts at toy size on the CPU", file=sys.stderr)
        return 2
    from _gpu.common import device_facts
    from _gpu.tables import tables

    facts = device_facts() | ({"gpu": None} if args.rehearse else {})
    found: dict[str, Any] = {"date": f"{datetime.date.today()}", "rehearsal": args.rehearse, "device": facts}
    found |= {"parts": {}, "results": []}
    for part in args.parts:
        state, results = run_part(args, part)
        found["parts"][part] = state
        found["results"] += results
        write(args.json, json.dumps(found, indent=1) + "\n")
        print(f"part {part}: {state}", flush=True)
    text = tables(found)
    print(text)
    if args.out:
        write(args.out, text)
    return int(any(state.startswith("failed") for state in found["parts"].values()))


def run_part(args: argparse.Namespace, part: str) -> tuple[str, list[dict[str, Any]]]:
    """(state, results) of one part, run in a process that is ended with all it started when its time is up."""
    limit = args.limit or (REHEARSAL_LIMIT if args.rehearse else PARTS[part])
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        results.touch()
        command = [sys.executable, __file__, "--child", part, "--results", str(results), "--models", str(args.models)]
        command += ["--rehearse"] if args.rehearse else []
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if args.rehearse else {})
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
        try:
            status = process.wait(timeout=limit)
            state = "complete" if status == 0 else f"failed with exit status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            state = f"out of time after {limit} s"
        return state, [json.loads(line) for line in whole_lines(results)]


def whole_lines(path: Path) -> list[str]:
    """A line that was being written when the process was ended is left out."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def child(args: argparse.Namespace) -> int:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "CI": "1"}
    from _gpu import head, runs, steps
    from _gpu.common import Context

    context = Context(rehearse=args.rehearse, models=args.models, results=args.results)
    run = {
        "a": head.run,
        "b": steps.run_full,
        "c": steps.run_adapters,
        "e": runs.run_rollouts,
        "f": runs.run_curves,
    }
    run[args.child](context)
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="all results")
    parser.add_argument("--out", type=Path, help="write the tables of docs/benchmarks.md here")
    parser.add_argument("--models", type=Path, default=Path("runs/models"), help="where smollm2 may lie")
    parser.add_argument("--limit", type=float, help="seconds for each part instead of its own limit")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
