"""A tiny lab and the whole demo on it: quality is nil, every part runs."""

import json
import re

import pytest

from negpo.errors import ConfigError, NegpoError
from negpo.eval.tofu import load_tofu
from negpo.lab import build_lab
from negpo.lab._jobs import Job, run_jobs
from negpo.lab.demo import DemoSettings, run_demo
from negpo.lab.experiment import TUNING_SEEDS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished tiny demo with two methods, and its settings."""
    settings = DemoSettings(out=tmp_path_factory.mktemp("demo"), size="tiny", methods=("npo", "catnip"), every=50)
    run_demo(settings)
    return settings


def results_of(settings):
    return {path.parent.name: path for path in settings.out.glob("seed0/*/results.json")}


def test_the_demo_leaves_a_result_per_model_and_a_report_without_external_parts(tiny):
    assert results_of(tiny).keys() == {"target", "retain", "npo", "catnip"}
    html = (tiny.out / "report.html").read_text(encoding="utf-8")
    assert "NPO + retain" in html
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", html)
    assert "http" not in re.sub(r"base64,[^\"]+", "", html)


def test_a_finished_run_has_its_trajectory_its_log_its_model_and_the_command_that_repeats_it(tiny):
    result = json.loads(results_of(tiny)["npo"].read_text())
    steps = [point["step"] for point in result["trajectory"]]
    assert steps == sorted(steps)
    assert steps[-1] == max(entry["step"] for entry in result["training_log"])
    assert {"forget_quality", "model_utility", "mia_min_k"} <= result["trajectory"][-1]["metrics"].keys()
    assert result["command"][:5] == ["negpo", "train", "npo", "--config", "npo/lab"]
    assert (results_of(tiny)["npo"].parent / "model" / "model.safetensors").exists()


def test_a_second_call_does_only_what_is_missing(tiny):
    times = {name: path.stat().st_mtime_ns for name, path in results_of(tiny).items()}
    results_of(tiny)["catnip"].unlink()
    run_demo(tiny)
    again = {name: path.stat().st_mtime_ns for name, path in results_of(tiny).items()}
    assert {name for name in times if times[name] != again[name]} == {"catnip"}


def test_results_of_another_evaluation_rhythm_are_not_mixed_with_new_ones(tiny):
    other = DemoSettings(out=tiny.out, size="tiny", methods=tiny.methods, every=51).plan(0)
    assert tiny.plan(0).finished("npo")
    assert not other.finished("npo")
    assert other.finished("target")  # measured once, whatever the rhythm


def test_a_built_lab_is_found_again_and_loads_as_tofu_data(tiny):
    lab = build_lab(tiny.out / "labs", 0, "tiny")
    built = lab.manifest
    assert build_lab(tiny.out / "labs", 0, "tiny").manifest == built
    data = load_tofu(lab.data, lab.forget)
    assert set(data.sets) == {"forget", "retain", "real_authors", "world_facts", "holdout"}
    assert not [path for path in lab.root.parent.iterdir() if path.name.startswith(".building")]


def test_the_tuning_worlds_and_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="tuned"):
        DemoSettings(seeds=(0, TUNING_SEEDS[0]))
    with pytest.raises(ConfigError, match="grad_asc"):
        DemoSettings(methods=("grad_asc",))
    with pytest.raises(ConfigError, match="huge"):
        build_lab("unused", 0, "huge")


def test_a_failing_child_process_is_reported_with_the_end_of_its_log(tmp_path):
    job = Job("broken", "negpo.no_such_module", (), tmp_path / "broken.log")
    with pytest.raises(NegpoError, match=r"No module named negpo\.no_such_module"):
        run_jobs([job], workers=1, title="test")
