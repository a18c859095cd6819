"""The set-up scripts, with a stand-in for pip: what they would install, and that a second run installs nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

FAKE_PYTHON = """#!/usr/bin/env bash
# Stands for the interpreter of an environment: records pip calls, answers the probes of _env.sh.
case "$*" in
  "-m pip --version") exit 0 ;;
  *--report*) echo '{REPORT}' ;;
  "-m pip install"*) echo "$*" >>"$CALLS"; [[ "$*" != *"$REFUSE"* ]] ;;
  *"import sys, torch"*) exit {NO_TORCH} ;;
  *'print(version("torch"))'*) echo 2.13.0+cpu ;;
  *"import json, sys"*) exec {PYTHON} "$@" ;;
  *"import sys"*|*"as v"*) exit 0 ;;
esac
"""


@pytest.fixture
def pretend(tmp_path):
    """``pretend(...)`` runs ``prepare_env`` in an environment whose pip only records; returns (process, pip calls)."""

    def run(extras="", *, has_torch=False, refuse="nothing", wheels="torch", environment="active"):
        env_dir = tmp_path / environment
        (env_dir / "bin").mkdir(parents=True, exist_ok=True)
        report = {"install": [{"metadata": {"name": name}} for name in wheels.split()]}
        script = FAKE_PYTHON.replace("{REPORT}", str(report).replace("'", '"'))
        script = script.replace("{NO_TORCH}", str(int(not has_torch))).replace("{PYTHON}", sys.executable)
        python = env_dir / "bin" / "python"
        python.write_text(script)
        python.chmod(0o755)
        calls = tmp_path / "calls"
        calls.write_text("")
        done = subprocess.run(
            [
                "bash",
                "-euo",
                "pipefail",
                "-c",
                f"source {ROOT}/scripts/_env.sh; has_nvidia_gpu() {{ false; }}; prepare_env '{extras}'",
            ],
            env={"PATH": os.environ["PATH"], "VIRTUAL_ENV": str(env_dir), "CALLS": str(calls), "REFUSE": refuse},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, calls.read_text().splitlines()

    return run


def test_without_a_gpu_the_cpu_build_of_torch_comes_first_and_stays(pretend):
    done, calls = pretend("dev")
    assert done.returncode == 0, done.stderr
    assert calls[0].endswith("torch==2.13.0+cpu")
    assert "--constraint" in calls[1]
    assert calls[1].endswith(f"--editable {ROOT}[dev]")


def test_a_second_run_installs_nothing_and_says_so(pretend):
    pretend("dev")
    for extras in ("dev", ""):
        done, calls = pretend(extras)
        assert calls == []
        assert "environment ready" in done.stdout


def test_a_torch_that_is_there_is_kept(pretend):
    done, calls = pretend(has_torch=True)
    assert "keeping torch 2.13.0+cpu" in done.stdout
    assert len(calls) == 1


def test_pytorchs_cpu_index_is_tried_next_and_fails_fast(pretend):
    done, calls = pretend(refuse="+cpu")
    assert done.returncode == 0, done.stderr
    assert "--index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 10" in calls[1]


def test_the_plain_package_is_taken_only_where_it_brings_no_cuda(pretend):
    done, calls = pretend(refuse="cpu", wheels="torch sympy", environment="plain")
    assert done.returncode == 0, done.stderr
    assert calls[2].endswith("torch==2.13.0")
    done, calls = pretend(refuse="cpu", wheels="torch nvidia-cublas", environment="cuda")
    assert done.returncode == 1
    assert "brings CUDA libraries" in done.stderr
    assert all(call.endswith(("+cpu", "--timeout 10")) for call in calls)


def test_a_python_that_is_too_old_is_a_clear_message(tmp_path):
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "mkdir"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [shutil.which("bash"), "-euo", "pipefail", "-c", f"source {ROOT}/scripts/_env.sh; prepare_env ''"],
        env={"PATH": f"{tmp_path}:{tools}", "NEGPO_VENV": str(tmp_path / "new")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12" in done.stderr
