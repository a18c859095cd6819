"""`negpo plan` on the command line, and the script that measures what it predicts."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from negpo import cli

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_scaling.py"


def plan(capsys, *words):
    """(exit status, what was printed) of ``negpo plan``."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", *words])
    captured = capsys.readouterr()
    return stopped.value.code, captured.out + captured.err


def test_a_plan_that_fits_says_so_and_ends_with_status_0(capsys):
    status, text = plan(capsys, "Llama-3.1-8B", "--devices", "8", "--gradient-checkpointing")
    assert status == 0
    assert "8,030,261,248" in text
    assert re.search(r"fits: [\d.]+ GiB of 80\.0 GiB per device", text)
    for part in ("weights", "optimiser", "gradients", "activations", "log-prob tiles", "tokens per second"):
        assert part in text


def test_a_plan_that_does_not_fit_names_the_part_and_the_change_and_ends_with_status_1(capsys):
    status, text = plan(capsys, "Llama-3.1-8B", "--devices", "8")
    assert status == 1
    assert "first part that does not fit: activations" in text
    assert "smallest change that fits: gradient checkpointing" in text


def test_json_holds_parts_operations_speed_and_the_changes_tried(capsys):
    words = ["--method", "nsr", "--devices", "64", "--engine", "vllm", "--samples", "8", "--max-new-tokens", "4096"]
    status, text = plan(capsys, "Llama-3.1-70B", *words, "--sequence-length", "5120", "--json")
    values = json.loads(text)
    assert status == 1
    assert values["fits"] is False
    assert values["settings"]["gradient_accumulation"] == 2  # groups of 8 out of micro-batches of 4
    assert sum(values["memory"]["peak_parts"].values()) == values["memory"]["peak_bytes"]
    assert values["operations"]["rollouts"] > 0
    assert values["speed"]["rollout_seconds"] > 0
    assert values["changes_tried"][-1]["fits"] is True


def test_device_memory_and_mfu_of_the_flags_are_used(capsys):
    words = ("Qwen2.5-0.5B", "--device", "a100", "--device-memory", "24GiB", "--mfu", "0.25", "--micro-batch", "1")
    _, text = plan(capsys, *words, "--json")
    settings = json.loads(text)["settings"]
    assert (settings["memory"], settings["flops"], settings["utilisation"]) == (24 * 2**30, 312e12, 0.25)


def test_a_measured_mfu_replaces_the_assumed_one(capsys, tmp_path):
    file = tmp_path / "mfu.json"
    file.write_text('{"flops": 2e11, "utilisation": 0.31}')
    _, text = plan(capsys, "Qwen2.5-0.5B", "--measured-mfu", str(file), "--json")
    settings = json.loads(text)["settings"]
    assert (settings["flops"], settings["utilisation"]) == (2e11, 0.31)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "nop"], "method is 'nop'"),
        (["--devices", "4", "--strategy", "single"], "strategy=single runs on one device"),
        (["--device-memory", "a lot"], "not an amount of memory"),
        (["--mfu", "0.4", "--measured-mfu", "x.json"], "exclude each other"),
        (["--measured-mfu", "missing.json"], "missing.json: the file cannot be read"),
    ],
)
def test_wrong_flags_end_with_status_2_and_say_what_was_seen(capsys, words, message):
    status, text = plan(capsys, "Llama-3.1-8B", *words)
    assert status == 2
    assert message in text


def test_the_scaling_script_measures_what_the_plan_predicts_within_ten_percent(tmp_path):
    out, mfu = tmp_path / "table.md", tmp_path / "mfu.json"
    command = [sys.executable, str(SCRIPT), "--small", "--out", str(out), "--save-mfu", str(mfu)]
    subprocess.run(command, check=True, capture_output=True, timeout=400)
    text = out.read_text()
    assert text.count("| 128 x 2 |") == 2  # NPO and NSR
    assert float(re.search(r"at most ([\d.]+)%", text).group(1)) < 10
    assert "| parameters |" in text
    assert 0 < json.loads(mfu.read_text())["utilisation"] <= 1
