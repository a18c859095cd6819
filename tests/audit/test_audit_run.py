"""Whole audits of small trained models: the same numbers however they are computed, and meaningful verdicts."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from negpo.cli import main
from negpo.eval.audit import stages
from negpo.eval.audit.data import load_audit_data
from negpo.eval.audit.run import run_audit
from negpo.eval.audit.settings import AuditSettings
from negpo.eval.scoring import Batching
from negpo.eval.tofu import TofuSettings, evaluate_tofu, load_tofu

SHORT = 16  # new tokens: an answer of the world has about twelve
STANDARD = AuditSettings(max_new_tokens=SHORT)
ATTACKED = [("retain-again", "retain"), ("target-again", "target")]


def load(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint.folder).eval()


def audited(world, out, models=(("gone", "gone"),), settings=STANDARD, load=load, data=None):
    pairs = [(label, world[name]) for label, name in models]
    data = data or load_audit_data(world.data)
    return run_audit(pairs, world["target"], world["retain"], data, settings, out=out, load=load)


def timeless(content):
    """``content`` without wall-clock seconds."""
    if isinstance(content, dict):
        return {key: timeless(value) for key, value in content.items() if key != "seconds"}
    return [timeless(value) for value in content] if isinstance(content, list | tuple) else content


def arguments(world, out, *extra):
    controls = ["--target", world["target"], "--retain", world["retain"], "--forget", str(world.data)]
    return ["audit", world["gone"], *controls, "--max-new-tokens", str(SHORT), "--out", str(out), *extra]


def result(out: Path):
    """What an audit left: its numbers without seconds, and its rows."""
    rows = {path.parent.name: path.read_bytes() for path in sorted(out.glob("models/*/items.jsonl"))}
    return timeless(json.loads((out / "audit.json").read_text())), rows


@pytest.fixture(scope="module")
def standard(world, tmp_path_factory):
    """The folder of a finished audit, and the audit."""
    out = tmp_path_factory.mktemp("standard")
    audit = audited(world, out)
    audit.save(out)
    return out, audit


@pytest.fixture(scope="module")
def attacked(world, tmp_path_factory):
    return audited(world, tmp_path_factory.mktemp("full"), ATTACKED, replace(STANDARD, suite="full"))


def test_metrics_equal_those_of_the_tofu_harness(standard, world):
    _, audit = standard
    data, settings = load_tofu(world.data), TofuSettings(max_new_tokens=SHORT, gradnorm=True)
    retain, model = (load(one.measured.checkpoint) for one in (audit.retain, audit.models[0]))
    tokenizer = audit.retain.measured.checkpoint.tokenizer
    log = evaluate_tofu(retain, tokenizer, data, settings, reference_model=retain).retain_log()
    expected = evaluate_tofu(model, tokenizer, data, settings, retain_log=log, reference_model=retain)
    assert dict(audit.models[0].numbers.summary.metrics) == pytest.approx(dict(expected), rel=1e-5)
    assert len(expected) >= 23


def test_every_number_has_an_interval_around_it(standard):
    _, audit = standard
    for one in (*audit.models, audit.retain, audit.target):
        assert set(one.numbers.estimates) == set(one.numbers.summary.metrics)
        for name, found in one.numbers.estimates.items():
            assert found.low <= found.value <= found.high, name


def test_the_value_of_a_resampled_number_is_the_harness_number(standard):
    from negpo.eval.audit.measure import Plan
    from negpo.eval.audit.numbers import _membership_statistics, _row_statistics
    from negpo.eval.audit.resampling import Resampler

    _, audit = standard
    model, control = audit.models[0], audit.retain.measured
    data = load_audit_data(Path(audit.manifest["data"]["source"]))
    plan = Plan.make(data, control.checkpoint.tokenizer, STANDARD, "target")
    once = Resampler.make({name: len(rows) for name, rows in data.sets.items()}, 100, 0, 0.95).observed
    found = _row_statistics(model.measured, plan) | _membership_statistics(model.numbers.scores, control, plan)
    values = {name: float(statistic(once)[0]) for name, statistic in found.items()}
    metrics = model.numbers.summary.metrics
    assert values == pytest.approx({name: metrics[name] for name in values}, rel=1e-12)
    assert set(metrics) - set(values) == {"forget_quality"}


def test_batches_of_one_and_of_thirty_two_give_the_same_numbers(standard, world, tmp_path):
    """Float32 kernels round by shape: 1e-5 relative on every number; texts and verdicts are equal."""
    data = load_audit_data(world.data, limit=10)
    settings = [replace(STANDARD, batching=Batching(max_rows=rows)) for rows in (1, 32)]
    audits = [audited(world, tmp_path / str(i), settings=one, data=data) for i, one in enumerate(settings)]
    one, many = (audit.models[0] for audit in audits)
    assert one.numbers.summary.metrics == pytest.approx(many.numbers.summary.metrics, rel=1e-5)
    texts = [[row["generation"] for row in side.measured.rows["forget"]] for side in (one, many)]
    assert texts[0] == texts[1]
    assert [line.outcome for line in one.lines] == [line.outcome for line in many.lines]


def test_the_retain_model_passes_every_line_and_the_target_fails_all_about_forgetting(attacked):
    """The audit's own false-positive check and its power; lines without power are counted for neither."""
    retain, target = attacked.models
    told = {line.kind.metric: line.outcome for line in retain.lines if line.outcome != "no power"}
    assert len(told) >= 20
    assert set(told.values()) == {"pass"}
    about = [line for line in target.lines if line.kind.group != "preserved" and line.outcome != "no power"]
    assert {line.kind.metric for line in about} >= {"forget_quality", "mia_min_k", "relearn_forget", "quantise_4bit"}
    assert {line.outcome for line in about} == {"fail"}


def test_a_model_audited_as_itself_is_measured_again_and_agrees_to_the_last_digit(attacked):
    again, control = attacked.models[0].measured, attacked.retain.measured
    assert again.role != control.role
    assert again.rows == control.rows
    assert timeless({name: one.to_json() for name, one in again.attacks.items()}) == timeless(
        {name: one.to_json() for name, one in control.attacks.items()}
    )


def test_weights_that_equal_a_controls_are_named(attacked):
    retain, target = attacked.models
    assert "it is its own control" in retain.warnings[0]
    assert "nothing was unlearned" in target.warnings[0]


def test_a_second_audit_loads_no_model_and_reuses_the_controls(standard, world):
    out, audit = standard

    def never(checkpoint):
        raise AssertionError("loaded again")

    again = audited(world, out, load=never)
    assert timeless(again.as_dict()) == timeless(audit.as_dict())
    loaded = []
    audited(world, out, [("gone", "gone"), ("other", "target")], load=lambda one: loaded.append(one.label) or load(one))
    assert loaded == ["other"]


def test_other_settings_do_not_meet_old_stages(standard, world):
    out, _ = standard
    loaded = []
    settings = replace(STANDARD, max_new_tokens=5)
    audited(world, out, settings=settings, load=lambda one: loaded.append(one.label) or load(one))
    assert set(loaded) == {"gone", "target", "retain"}


def test_missing_holdout_rows_leave_the_rest_and_a_reason(world, tmp_path):
    data = load_audit_data(world.data)
    del data.sets["holdout"]
    data.absent["holdout"] = "there is no holdout"
    audit = audited(world, tmp_path, data=data)
    model = audit.models[0]
    assert model.numbers.summary.missing["mia_min_k"] == "there is no holdout"
    assert not [line for line in model.lines if line.kind.metric.startswith("mia_")]
    assert model.numbers.summary.metrics["extraction_strength"] > 0


def test_nan_logits_are_counted_and_fail_their_lines(world, tmp_path):
    def broken(checkpoint):
        model = load(checkpoint)
        if checkpoint.label == "gone":
            with torch.no_grad():
                model.model.norm.weight.fill_(float("nan"))
        return model

    audit = audited(world, tmp_path, load=broken)
    [model] = audit.models
    assert "24 of 24 rows of forget have a loss that is not a number" in model.warnings
    verdicts = {line.kind.metric: line for line in model.lines}
    assert verdicts["forget_Q_A_Prob"].outcome == "fail"
    assert verdicts["forget_Q_A_Prob"].note == "not a number"
    assert verdicts["forget_quality"].outcome == "fail"
    audit.save(tmp_path)
    assert (
        json.loads((tmp_path / "audit.json").read_text())["models"][0]["metrics"]["forget_Q_A_Prob"]["value"] == "NaN"
    )


def test_the_command_exits_with_1_when_a_condition_is_not_met(world, tmp_path, capsys):
    met, unmet = ["--require", "utility>=0.9*target"], ["--require", "forget_Q_A_Prob<retain"]
    for extra, status in ((met, 0), ([*met, *unmet], 1)):
        with pytest.raises(SystemExit) as stopped:
            main(arguments(world, tmp_path, "--suite", "quick", *extra))
        assert stopped.value.code == status
    shown = capsys.readouterr().out
    assert "not met" in shown
    assert (tmp_path / "report.html").is_file()


def launch(world, out, processes=1):
    """Start the full suite on a part of the rows, under torchrun when there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "negpo", *arguments(world, out, "--suite", "full", "--limit", "12")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process):
    errors = process.communicate()[1]
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def by_command(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    finish(launch(world, out))
    return result(out)


def test_two_processes_give_the_numbers_of_one_to_the_last_digit(world, by_command, tmp_path):
    finish(launch(world, tmp_path, processes=2))
    assert result(tmp_path) == by_command


def test_a_killed_audit_goes_on_and_ends_with_equal_numbers(world, by_command, tmp_path):
    """SIGKILL in the middle of the controls, and again in the middle of the attacks on the model."""
    for wanted in (4, 50):
        process = launch(world, tmp_path)
        while process.poll() is None and len(list(tmp_path.glob("stages/*/*.json"))) < wanted:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/*.json")}
    finish(launch(world, tmp_path))
    assert result(tmp_path) == by_command
    assert all(path.stat().st_mtime_ns == moment for path, moment in kept.items())


def test_stages_that_other_code_measured_are_not_read(world, standard, monkeypatch):
    out, _ = standard
    monkeypatch.setattr(stages, "code_sha256", lambda: "another")
    loaded = []
    audited(world, out, load=lambda one: loaded.append(one.label) or load(one))
    assert "gone" in loaded
