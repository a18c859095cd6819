"""``negpo train --launch``: what is started, with which ranks, and which exit status comes back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from negpo.cli import launch
from negpo.configs import CONFIGS
from negpo.errors import ConfigError

SETTINGS = ["--config", "npo/tofu_forget10", "--max_steps", "3"]


@pytest.fixture
def deepspeed_installed(monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())


def rendered(line, *, gpus=8):
    how, rest = launch.split(line)
    launch.check(how, gpus)
    return launch_command_parser().parse_args(launch.accelerate_arguments(how, "npo", rest, gpus=gpus))


def test_without_launch_the_command_line_is_left_alone():
    assert launch.split([*SETTINGS, "--beta=0.1"]) == (None, [*SETTINGS, "--beta=0.1"])


@pytest.mark.parametrize("name", launch.LAUNCHES)
@pytest.mark.usefixtures("deepspeed_installed")
def test_accelerate_accepts_the_command_line_of_every_strategy(name):
    n = 1 if name == "single" else 4
    args = rendered([*SETTINGS[:2], f"--launch={name}", "--num-processes", str(n), *SETTINGS[2:]])
    assert (args.num_processes, args.module, args.training_script) == (n, True, "negpo")
    assert args.training_script_args[: 2 + len(SETTINGS)] == ["train", "npo", *SETTINGS]
    config = yaml.safe_load(Path(args.config_file).read_text())
    assert Path(args.config_file).stem == name
    # a precision here would overrule the recipe's bf16: false
    assert config.get("mixed_precision", "no") == "no"
    if name.startswith("zero"):
        stage = json.loads(Path(args.deepspeed_config_file).read_text())["zero_optimization"]["stage"]
        assert str(stage) == name[4]


def test_placement_goes_to_accelerate_and_no_training_setting_is_taken_away():
    from transformers import TrainingArguments

    fields = set(TrainingArguments.__dataclass_fields__)
    known = {flag for action in launch_command_parser()._actions for flag in action.option_strings}
    assert {f"--{name}" for name in launch.PLACEMENT} <= known
    assert not fields & {"launch", "num_processes", *launch.PLACEMENT}
    args = rendered(
        ["--launch", "ddp", "--num_processes", "8", "--num_machines=2", "--main-process-ip", "a", *SETTINGS]
    )
    assert (args.num_machines, args.main_process_ip, args.training_script_args[2:]) == (2, "a", SETTINGS)


def test_ranks_on_a_cpu_are_told_their_backend(deepspeed_installed):
    assert rendered(["--launch", "cpu", "--num-processes", "2"]).training_script_args[-2:] == ["--use_cpu", "true"]
    zero = rendered(["--launch", "zero3", "--num-processes", "2"], gpus=0).training_script_args
    assert zero[-2:] == ["--ddp_backend", "gloo"]


@pytest.mark.parametrize(
    ("line", "gpus", "message"),
    [
        (["--launch", "zero4"], 8, "zero4"),
        (["--num-processes", "2"], 8, "needs --launch"),
        (["--launch", "ddp", "--num-processes", "two"], 8, "whole number"),
        (["--launch", "ddp", "--num-processes", "16"], 8, "shows 8 GPU"),
        (["--launch", "single", "--num-processes", "2"], 8, "one process"),
        (["--launch", "fsdp2", "--num-processes", "2"], 0, "no FSDP on a CPU"),
        (["--launch", "ddp", "--num_machines", "2", "--num-processes", "9"], 8, "does not divide"),
        (["--launch", "zero3"], 0, "how many CPU processes"),
    ],
)
def test_a_launch_that_cannot_run_as_asked_is_refused_before_anything_starts(line, gpus, message):
    with pytest.raises(ConfigError, match=message):
        rendered(line, gpus=gpus)


def test_zero_without_deepspeed_names_the_extra(monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"negpo\[deepspeed\]"):
        rendered(["--launch", "zero2"])


# ---- examples for many machines --------------------------------------------------------------------------------------


def dry_run(script, arguments, folder, commands, **variables):
    """The words that ``script`` would start a program with; ``commands`` are put in front of PATH."""
    for name, text in commands.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    environment = os.environ | variables | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-n", str(script)], check=True)
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_slurm_example_starts_one_launcher_a_machine_that_accelerate_understands(tmp_path, deepspeed_installed):
    commands = {
        "scontrol": "printf 'node7\\nnode8\\n'",
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',  # its own flag, then the command of the second machine
        "negpo": 'shift 2; printf "%s\\n" "$@"',
    }
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    words = dry_run(CONFIGS / "launch" / "slurm.sbatch", ["npo", *SETTINGS], tmp_path, commands, **slurm)
    args = rendered(words)
    assert (args.num_processes, args.num_machines, args.machine_rank) == (16, 2, 1)
    assert (args.main_process_ip, args.main_process_port) == ("node7", 20077)
    assert args.deepspeed_multinode_launcher == "standard"
    assert args.training_script_args == ["train", "npo", *SETTINGS, "--resume_from_checkpoint", "auto"]


def test_the_torchrun_example_is_accepted_by_torchrun(tmp_path):
    from torch.distributed.run import get_args_parser

    commands = {"torchrun": 'printf "%s\\n" "$@"', "python": f'exec {sys.executable} "$@"'}
    script, where = CONFIGS / "launch" / "torchrun.sh", {"HEAD": "10.0.0.1:29500", "STRATEGY": "zero2"}
    args = get_args_parser().parse_args(dry_run(script, ["npo", *SETTINGS], tmp_path, commands, **where))
    assert (args.nnodes, args.nproc_per_node, args.rdzv_endpoint) == ("2", "8", "10.0.0.1:29500")
    assert (args.module, args.training_script) == (True, "negpo")
    assert args.training_script_args[:-1] == ["train", "npo", *SETTINGS, "--deepspeed"]
    assert Path(args.training_script_args[-1]).is_file()


# ---- real processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "trainers"))
    from unlearn_tiny import FORGET, make_model, make_tokenizer

    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "forget.json").write_text(json.dumps(FORGET))
    return tmp_path / "model"


def test_launch_cpu_trains_on_as_many_ranks_as_it_was_asked_for(tmp_path, checkpoint):
    command = [
        sys.executable, "-m", "negpo", "train", "ga", "--launch", "cpu", "--num-processes", "2", "--max_steps", "1",
        "--model_name_or_path", str(checkpoint), "--forget_dataset", str(tmp_path / "forget.json"),
        "--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "out"), "--disable_tqdm", "true",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "negpo_train.json").read_text())["processes"] == 2
    # 6 rows, 2 on each of 2 ranks: two steps an epoch, so one step is half of it
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["epoch"] == pytest.approx(0.5)


def test_the_exit_status_is_that_of_the_rank_that_failed(capfd):
    how = launch.Launch("cpu", 1)
    settings = ["--model_name_or_path", "absent", "--forget_dataset", "absent.json"]
    before = dict(os.environ)
    assert launch.run(how, "ga", settings) == 2
    assert "rank 0" in capfd.readouterr().err
    assert dict(os.environ) == before


def test_ranks_that_would_train_alone_are_refused(monkeypatch):
    from negpo.trainers._run.world import EXPECTED, check_world

    check_world(1)
    monkeypatch.setenv(EXPECTED, "2")
    with pytest.raises(ConfigError, match="2 processes were asked for, 1 started"):
        check_world(1)
    monkeypatch.delenv(EXPECTED)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="1 would train together"):
        check_world(1)
