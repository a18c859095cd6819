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
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 6
HANG_SECONDS = 6.0
PATIENCE = 240.0  # seconds until a run that should have ended is called undetected
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


@dataclass
class Run:
    """A launcher in a process of its own; ``ranks`` are its children."""

    folder: Path
    log: Path
    process: Any
    victim: int | None = None  # process id of the rank that was signalled

    def wait(self) -> int | None:
        """Exit status; None, and everything killed, when it does not end."""
        self.process.join(PATIENCE)
        if self.process.exitcode is not None:
            return self.process.exitcode
        for pid in [*self.ranks(), self.process.pid]:
            os.kill(pid, signal.SIGKILL)
        return None

    def ranks(self) -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def reach(self, step: int) -> bool:
        """Wait until checkpoint ``step`` is complete; False when the run ended before."""
        while not (self.folder / f"checkpoint-{step}" / "negpo_checkpoint.json").is_file():
            if self.process.exitcode is not None:
                return False
            time.sleep(0.01)
        return True


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
    run = start(drill, method_of(fault), folder, limit_files=fault == "disk" and not drill.mounted)
    step, delay = drill.rng.randint(1, STEPS - 2), drill.rng.uniform(0.0, 0.3)
    status, said = None, ""
    if run.reach(step):
        time.sleep(delay)
        HURT[fault](drill, run, number)
        status, said = run.wait(), run.log.read_text(errors="replace")
    if fault == "torn":
        status = 0  # the fault is found by the run that resumes
    mend(fault, folder)
    again = start(drill, method_of(fault), folder)
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


# ---- runs -----------------------------------------------------------------------------------------------------------


def method_of(fault: str) -> str:
    return "nsr" if fault == "engine" else "npo"


def finished(drill: Drill, method: str) -> bytes:
    """The weights of a run that nothing happens to."""
    run = start(drill, method, drill.out / f"whole-{method}")
    if run.wait() != 0:
        sys.exit(f"a run without any fault fails, see {run.log}")
    return final(run.folder)


def final(folder: Path) -> bytes:
    path = folder / "model.safetensors"
    return path.read_bytes() if path.is_file() else b""


def start(drill: Drill, method: str, folder: Path, *, limit_files: bool = False) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    logs = sorted(drill.out.glob(f"{folder.name}.*.log"))
    log = drill.out / f"{folder.name}.{len(logs)}.log"
    log.touch()
    process = multiprocessing.get_context("fork").Process(
        target=be_launcher, args=(method, drill.out, folder, log, limit_files)
    )
    process.start()
    return Run(folder, log, process)


def be_launcher(method: str, inputs: Path, folder: Path, log: Path, limit_files: bool) -> None:
    """In the forked process: what ``negpo train --launch cpu --num-processes 2`` does, with forked ranks."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from negpo.cli.launch import status_of

    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if limit_files:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", run_id=folder.name, monitor_interval=0.1, max_restarts=0,
    )  # fmt: skip
    sys.exit(status_of(lambda: elastic_launch(config, be_rank)(method, str(inputs), str(folder))))


def be_rank(method: str, inputs: str, folder: str) -> None:
    from negpo import cli

    signal.signal(signal.SIGUSR1, sleep_for_ever)
    slow_down()
    settings = [
        "--model_name_or_path", f"{inputs}/model", "--output_dir", folder, "--max_steps", str(STEPS),
        "--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "1", "--use_cpu", "true",
        "--disable_tqdm", "true", "--report_to", "none", "--per_device_train_batch_size", "4",
        "--resume_from_checkpoint", "auto", "--hang_timeout", str(HANG_SECONDS),
    ]  # fmt: skip
    if method == "npo":
        settings += ["--forget_dataset", f"{inputs}/forget.json", "--retain_dataset", f"{inputs}/retain.json"]
        settings += ["--retain_loss", "nll", "--save_total_limit", "3"]
    else:
        draw_in_another_process(Path(folder))
        settings += ["--dataset", f"{inputs}/problems.json", "--protocol", "lab", "--num_generations", "4"]
        settings += ["--max_completion_length", "24", "--updates_per_rollout", "1", "--learning_rate", "1e-3"]
        settings += ["--max_entropy_share", "1.0", "--gradient_checkpointing", "false"]
    cli.main(["train", method, *settings])


def slow_down() -> None:
    """Steps as long as delays are drawn: otherwise every fault would fall into the writing of a checkpoint."""
    from transformers import Trainer

    step = Trainer.training_step

    def slower(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.15)
        return step(*args, **kwargs)

    Trainer.training_step = slower


def sleep_for_ever(number: int, frame: Any) -> None:
    while True:
        time.sleep(1)


def draw_in_another_process(folder: Path) -> None:
    """From now on the embedded engine decodes in a forked process, which can be killed like a server."""
    from negpo.rollout.transformers_engine import TransformersEngine

    generate = TransformersEngine.generate

    def remote(self: Any, *args: Any, **kwargs: Any) -> Any:
        ours, theirs = multiprocessing.Pipe()
        child = os.fork()
        if child == 0:
            theirs.send(generate(self, *args, **kwargs))
            os._exit(0)
        theirs.close()
        busy = folder / "engine-busy"
        if os.environ["RANK"] == "0":
            busy.write_text(str(child))
        try:
            return ours.recv()
        finally:
            busy.unlink(missing_ok=True)
            os.waitpid(child, 0)

    TransformersEngine.generate = remote


def import_everything() -> None:
    """Before forking; nothing may run that starts threads."""
    import torch

    torch.set_num_threads(1)
    import negpo.rollout.transformers_engine
    import negpo.trainers._script
    import negpo.trainers._script_rl
    import negpo.trainers.npo
    import negpo.trainers.nsr  # noqa: F401


def write_inputs(folder: Path) -> None:
    from negpo.lab._models import make_model, make_tokenizer

    tokenizer = make_tokenizer(["a"], 260)
    model = make_model(tokenizer, hidden=32, layers=2, heads=4, intermediate=64, seed=0)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"question": f"What is {i}?", "answer": f"It is {'very ' * (i % 3)}{i * i}."} for i in range(32)]
    for name, part in (("forget", rows[:16]), ("retain", rows[16:])):
        (folder / f"{name}.json").write_text(json.dumps(part))
    problems = [{"problem": f"{i}+{i}=", "answer": str(2 * i)} for i in range(16)]
    (folder / "problems.json").write_text(json.dumps(problems))


def table(counts: dict[str, dict[str, int]], times: int) -> str:
    lines = [f"| fault, {times} times each | {' | '.join(COLUMNS)} |", f"|---|{'--:|' * len(COLUMNS)}"]
    lines += [f"| {fault} | {' | '.join(str(row[name]) for name in COLUMNS)} |" for fault, row in counts.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
