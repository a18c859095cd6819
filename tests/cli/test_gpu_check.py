"""scripts/gpu_check.py: every part rehearsed at toy size on a CPU, time limits, tables without invented numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.py"


def check(folder, *flags):
    command = [sys.executable, str(SCRIPT), "--json", str(folder / "gpu.json"), "--out", str(folder / "gpu.md"), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580, check=False)


def test_the_rehearsal_runs_every_part_and_writes_its_tables(tmp_path):
    done = check(tmp_path, "--rehearse")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["parts"] == dict.fromkeys("abcef", "complete")
    failures = [entry for entry in found["results"] if "failed" in entry]
    assert not failures
    variants = {entry["variant"] for entry in found["results"] if entry["part"] == "a" and "seconds" in entry}
    assert variants == {"negpo", "negpo tiles", "negpo on TRL's kernel", "full logits"}
    assert all(entry["logp_error"] < 1e-4 for entry in found["results"] if "logp_error" in entry)
    methods = {entry["method"] for entry in found["results"] if entry["part"] == "b" and "seconds" in entry}
    assert methods >= {"npo", "redi", "dpo", "nsr", "grpo", "GRPO"}
    text = (tmp_path / "gpu.md").read_text()
    assert "a rehearsal, not a measurement" in text
    assert "### Log-prob core" in text
    assert "liger-kernel is not installed" in text or "Liger needs a GPU" in text


def test_a_part_without_time_keeps_what_it_had_and_the_others_go_on(tmp_path):
    done = check(tmp_path, "--rehearse", "--parts", "c", "f", "--limit", "0.01")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["parts"] == {"c": "out of time after 0.01 s", "f": "out of time after 0.01 s"}
    assert found["results"] == []
    assert "out of time" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = check(tmp_path)
    assert done.returncode == 2
    assert "--rehearse" in done.stderr
    assert not (tmp_path / "gpu.json").exists()
