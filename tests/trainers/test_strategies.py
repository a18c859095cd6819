"""Sharded training equals one process, and a killed rank is no loss: short runs of the scripts that show it in full."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run_script(name, folder, *arguments):
    """What a script wrote into results.json; its own exit status says whether all of it is good."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPTS / name), "--out", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


def test_fsdp2_on_two_ranks_trains_saves_and_resumes_like_one_process(tmp_path):
    """With a reference that is scored before sharding, and rollouts by ranks that have nothing to learn from."""
    rows = run_script(
        "check_strategies.py", tmp_path / "out", "--methods", "npo,nsr", "--strategies", "fsdp2", "--lora", "no"
    )
    assert [(row["method"], row["verdict"]) for row in rows] == [("npo", "ok"), ("nsr", "ok")]


@pytest.mark.deepspeed
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed")
@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_zero_on_two_ranks_trains_saves_and_resumes_like_one_process(tmp_path, stage):
    rows = run_script("check_strategies.py", tmp_path / "out", "--methods", "npo_kl,d2o_refresh", "--strategies", stage)
    assert {row["verdict"] for row in rows} == {"ok"}


def test_a_killed_rank_is_noticed_explained_and_the_resumed_run_ends_with_the_same_bits(tmp_path):
    found = run_script("fault_drill.py", tmp_path / "out", "--faults", "killed", "--times", "1")
    assert found["counts"] == {"killed": {"detected": 1, "explained": 1, "resumed": 1, "intact": 1}}
