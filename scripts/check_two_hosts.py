#!/usr/bin/env python
"""Train on two "hosts", network namespaces joined by a cable, and compare with one process. Needs root and iproute2.

    python scripts/check_two_hosts.py                        # ranks exchange gradients (DDP over gloo)
    python scripts/check_two_hosts.py --launch zero3         # sharded, with DeepSpeed

Each host runs what a cluster's job script runs on each machine: ``negpo train npo ... --launch NAME --num-processes 2
--num_machines 2 --machine_rank R --main_process_ip ...``. They share the file system and nothing else: from one
namespace the other's addresses are only reached through the virtual cable. Prints the largest difference of a final
weight to a run in one process; ends with status 1 when it exceeds 2e-5 (see check_strategies.py on tolerances).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOSTS = (("negpo-host0", "negpo-veth0", "10.77.0.1"), ("negpo-host1", "negpo-veth1", "10.77.0.2"))
PORT = "29577"
TOLERANCE = 2e-5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch", choices=("cpu", "zero1", "zero2", "zero3"), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/two-hosts"), help="deleted first")
    args = parser.parse_args()
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    write_inputs(out)
    one = subprocess.run([*training(out, "one", 4), "--use_cpu", "true"], env=environment(), capture_output=True)
    if one.returncode:
        sys.exit(f"the run in one process fails:\n{one.stderr.decode()[-3000:]}")
    started = time.perf_counter()
    with hosts():
        ranks = [start_host(out, args.launch, rank) for rank in range(2)]
        statuses = [rank.wait(timeout=900) for rank in ranks]
    if any(statuses):
        sys.exit(f"the hosts ended with {statuses}, see {out}/host*.log")
    seconds = time.perf_counter() - started
    largest = difference(out / "one", out / "two")
    print(f"two hosts, --launch {args.launch}: {seconds:.0f} s, largest difference of a weight {largest:.1e}")
    return int(largest > TOLERANCE)


@contextmanager
def hosts() -> Iterator[None]:
    """Two network namespaces, each with one end of a virtual cable."""
    (first, veth0, _), (second, veth1, _) = HOSTS
    try:
        for name in (first, second):
            ip("netns", "add", name)
        ip("link", "add", veth0, "type", "veth", "peer", "name", veth1)
        for name, device, address in HOSTS:
            ip("link", "set", device, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in (first, second):  # takes the cable with it
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ip {' '.join(words)}: {done.stderr.strip()} (root and iproute2 are needed)")


def start_host(out: Path, launch: str, rank: int) -> subprocess.Popen:
    name, device, _ = HOSTS[rank]
    command = ["ip", "netns", "exec", name, *training(out, "two", 2), "--launch", launch, "--num-processes", "2"]
    command += ["--num_machines", "2", "--machine_rank", str(rank)]
    command += ["--main_process_ip", HOSTS[0][2], "--main_process_port", PORT]
    log = (out / f"host{rank}.log").open("w")
    return subprocess.Popen(command, env=environment() | {"GLOO_SOCKET_IFNAME": device}, stdout=log, stderr=log)


def training(out: Path, name: str, batch: int) -> list[str]:
    return [
        sys.executable, "-m", "negpo", "train", "npo", "--model_name_or_path", str(out / "model"),
        "--forget_dataset", str(out / "forget.json"), "--retain_dataset", str(out / "retain.json"),
        "--retain_loss", "nll", "--max_steps", "4", "--per_device_train_batch_size", str(batch),
        "--learning_rate", "0.01", "--optim", "adamw_torch", "--adam_epsilon", "0.01", "--max_grad_norm", "0",
        "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--output_dir", str(out / name),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PATH": path}


def write_inputs(out: Path) -> None:
    from negpo.lab._models import make_model, make_tokenizer

    tokenizer = make_tokenizer(["a"], 260)
    make_model(tokenizer, hidden=32, layers=2, heads=4, intermediate=64, seed=0).save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    rows = [{"question": f"What is {i}?", "answer": f"It is {'very ' * (i % 3)}{i * i}."} for i in range(16)]
    for name, part in (("forget", rows[:8]), ("retain", rows[8:])):
        (out / f"{name}.json").write_text(json.dumps(part))


def difference(one: Path, two: Path) -> float:
    from transformers import AutoModelForCausalLM

    first, second = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, two))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


if __name__ == "__main__":
    sys.exit(main())
