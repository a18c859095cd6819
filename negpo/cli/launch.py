"""``negpo train METHOD ... --launch zero3 --num-processes 8``: the same command on several processes.

The rest of the command line is handed to ``accelerate launch`` with a shipped configuration, in this process: what it
starts is ``python -m negpo train METHOD ...`` once per rank. Flags that only place processes (PLACEMENT) go to
accelerate, all others to the training. Exit status: that of the rank that failed first, 128 + signal for one that was
killed, 143 after SIGTERM (the checkpoint is then written, see ``negpo.trainers._run.signals``).
"""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from negpo.configs import CONFIGS
from negpo.errors import ConfigError
from negpo.trainers._run.world import EXPECTED

LAUNCHES = ("cpu", "single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2")
PLACEMENT = (
    "num_machines", "machine_rank", "main_process_ip", "main_process_port", "gpu_ids", "rdzv_backend", "rdzv_conf",
    "max_restarts", "monitor_interval", "log_dir", "tee", "num_cpu_threads_per_process",
)  # fmt: skip
SHUTDOWN_SECONDS = 300  # torch kills ranks that need longer to write their checkpoint after SIGTERM; its default is 30


@dataclass
class Launch:
    """How to start: a name of LAUNCHES, ranks on all machines together, accelerate's own flags as ``--name value``."""

    name: str
    processes: int
    placement: list[str] = field(default_factory=list)

    @property
    def machines(self) -> int:
        return int(self.value("num_machines") or 1)

    def value(self, flag: str) -> str | None:
        return self.placement[self.placement.index(f"--{flag}") + 1] if f"--{flag}" in self.placement else None


def split(settings: Sequence[str]) -> tuple[Launch | None, list[str]]:
    """Takes the launch flags out of a command line; ``(None, all of it)`` when there is no ``--launch``.

    Raises ConfigError for an unknown name, a flag without value, or process flags without ``--launch``.
    """
    found: dict[str, str] = {}
    rest: list[str] = []
    words = iter(settings)
    for word in words:
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in ("launch", "num_processes", *PLACEMENT):
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value:
            raise ConfigError(f"{flag} needs a value")
        found[name] = value
    name = found.pop("launch", "")
    if not name:
        if found:
            raise ConfigError(f"--{next(iter(found))} needs --launch: one of {', '.join(LAUNCHES)}")
        return None, rest
    if name not in LAUNCHES:
        raise ConfigError(f"--launch is {name!r}; choose one of {', '.join(LAUNCHES)}")
    for flag in ("num_processes", "num_machines", "machine_rank"):
        if flag in found and not re.fullmatch(r"\d+", found[flag]):
            raise ConfigError(f"--{flag} is {found[flag]!r}; it must be a whole number")
    processes = int(found.pop("num_processes", 0))
    placement = [part for flag, value in found.items() for part in (f"--{flag}", value)]
    return Launch(name, processes, placement), rest


def check(launch: Launch, gpus: int) -> None:
    """Fill in the number of processes and refuse what would not run as asked. ``gpus``: visible ones here."""
    single, on_cpu = launch.name == "single", launch.name == "cpu"
    if launch.machines > 1 and not launch.processes:
        raise ConfigError("--num_machines needs --num-processes: the ranks on all machines together")
    launch.processes = launch.processes or (1 if single or on_cpu else gpus)
    if single and launch.processes != 1:
        raise ConfigError(f"--launch single runs one process, not {launch.processes}; use ddp, zero2 or fsdp2")
    if launch.processes % launch.machines:
        raise ConfigError(f"--num-processes {launch.processes} does not divide by --num_machines {launch.machines}")
    if launch.name in ("ddp", "fsdp2") and not gpus:
        why = "accelerate has no FSDP on a CPU" if launch.name == "fsdp2" else "it is for GPUs"
        raise ConfigError(f"--launch {launch.name}: no GPU is visible and {why}; use --launch cpu")
    if not launch.processes:
        raise ConfigError(f"--launch {launch.name}: no GPU is visible; say how many CPU processes with --num-processes")
    here = launch.processes // launch.machines
    if gpus and not on_cpu and here > gpus:
        raise ConfigError(f"--num-processes asks for {here} ranks on this machine, which shows {gpus} GPU(s)")
    if launch.name.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"--launch {launch.name} needs DeepSpeed: pip install 'negpo[deepspeed]'")


def accelerate_arguments(launch: Launch, method: str, settings: Sequence[str], *, gpus: int) -> list[str]:
    """What ``accelerate launch`` is called with, the training command included."""
    config = CONFIGS / "accelerate" / f"{launch.name}.yaml"
    words = ["--config_file", str(config), "--num_processes", str(launch.processes)]
    if launch.name.startswith("zero"):
        words += ["--deepspeed_config_file", str(CONFIGS / "deepspeed" / f"{launch.name}.json")]
        if launch.machines > 1:  # accelerate's default logs in to the other machines with pdsh
            words += ["--deepspeed_multinode_launcher", "standard"]
    if launch.machines == 1 and launch.value("main_process_port") is None:
        words += ["--main_process_port", "0"]  # a free one: two runs on a machine do not collide
    words += [*launch.placement, "--module", "negpo", "train", method, *settings]
    return words + _cpu_settings(launch, settings, gpus)


def _cpu_settings(launch: Launch, settings: Sequence[str], gpus: int) -> list[str]:
    """Training flags without which CPU ranks would not find each other, or would look for a GPU."""
    given = {word.partition("=")[0] for word in settings}
    wanted = {}
    if launch.name == "cpu":
        wanted["--use_cpu"] = "true"
    elif launch.name != "single" and not gpus:
        wanted["--ddp_backend"] = "gloo"  # use_cpu would switch DeepSpeed off
    return [word for flag, value in wanted.items() if flag not in given for word in (flag, value)]


def run(launch: Launch, method: str, settings: Sequence[str]) -> int:
    """Start all ranks of this machine, wait for them and return the exit status."""
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser

    gpus = torch.cuda.device_count()
    check(launch, gpus)
    words = accelerate_arguments(launch, method, settings, gpus=gpus)
    before = dict(
        os.environ
    )  # accelerate, too, leaves variables behind that would misguide a later run of this process
    try:
        os.environ[EXPECTED] = str(launch.processes)
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
        if launch.name.startswith("zero") and not gpus:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return status_of(lambda: launch_command(launch_command_parser().parse_args(words)))
    finally:
        os.environ.clear()
        os.environ.update(before)


def status_of(start: Callable[[], object]) -> int:
    """Call a launcher and turn what it raises into an exit status."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        start()
    except ChildFailedError as error:
        # a killed rank takes others with it within milliseconds, and the launcher may see those first
        rank, failure = min(error.failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
        return _status(failure.exitcode, f"rank {rank} (process {failure.pid})")
    except subprocess.CalledProcessError as error:
        return _status(error.returncode, "the training process")
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def _status(code: int, who: str) -> int:
    """A shell's exit status for a child's, and a last line that says who failed first: ranks print over each other."""
    ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
    print(f"negpo: {who} {ended}", file=sys.stderr)
    return 128 - code if code < 0 else code
