"""Training runs that fault_drill.py can hurt: two ranks under torch's elastic agent, forked from one warm process."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 6
HANG_SECONDS = 12.0  # of runs that will hang; in others a busy machine must not look like it
PATIENCE = 240.0  # seconds until a run that should have ended is called undetected


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


def start(inputs: Path, method: str, folder: Path, *, limit_files: bool = False, hangs: bool = False) -> Run:
    """Begin, or continue, a run of ``method``; its log is the next ``FOLDER.N.log`` beside ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = sorted(inputs.glob(f"{folder.name}.*.log"))
    log = inputs / f"{folder.name}.{len(logs)}.log"
    log.touch()
    process = multiprocessing.get_context("fork").Process(
        target=be_launcher, args=(method, inputs, folder, log, limit_files, hangs)
    )
    process.start()
    return Run(folder, log, process)


def be_launcher(method: str, inputs: Path, folder: Path, log: Path, limit_files: bool, hangs: bool) -> None:
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
    sys.exit(status_of(lambda: elastic_launch(config, be_rank)(method, str(inputs), str(folder), hangs)))


def be_rank(method: str, inputs: str, folder: str, hangs: bool) -> None:
    from negpo import cli

    signal.signal(signal.SIGUSR1, sleep_for_ever)
    slow_down()
    settings = [
        "--model_name_or_path", f"{inputs}/model", "--output_dir", folder, "--max_steps", str(STEPS),
        "--save_strategy", "steps", "--save_steps", "1", "--logging_steps", "1", "--use_cpu", "true",
        "--disable_tqdm", "true", "--report_to", "none", "--per_device_train_batch_size", "4",
        "--resume_from_checkpoint", "auto", "--hang_timeout", str(HANG_SECONDS if hangs else PATIENCE),
    ]  # fmt: skip
    if method == "npo":
        settings += ["--forget_dataset", f"{inputs}/forget.json", "--retain_dataset", f"{inputs}/retain.json"]
        settings += ["--retain_loss", "nll", "--save_total_limit", "3"]
    else:
        draw_in_another_process(Path(folder))
        settings += ["--dataset", f"{inputs}/problems.json", "--protocol", "lab", "--num_generations", "4"]
        settings += ["--max_completion_length", "24", "--updates_per_rollout", "1", "--learning_rate", "1e-3"]
        settings += ["--max_entropy_share", "1.0", "--gradient_checkpointing", "false"]
    try:
        cli.main(["train", method, *settings])
    except Exception:
        # Of forked ranks the agent names only one, where the real launcher's processes are all looked at: let it find
        # the rank that was hurt before this one, which merely lost its peer.
        time.sleep(1.0)
        raise


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
    import gc

    import torch

    torch.set_num_threads(1)
    import negpo.rollout.transformers_engine
    import negpo.trainers._script.policy
    import negpo.trainers._script.unlearn
    import negpo.trainers.npo
    import negpo.trainers.nsr  # noqa: F401

    gc.freeze()  # ranks collect garbage as training begins, and would copy all that was imported


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
