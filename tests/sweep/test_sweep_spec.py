"""A sweep's YAML: what is read, and what is refused by name before any model is loaded."""

import pytest
import yaml

from negpo.configs import CONFIGS
from negpo.errors import ConfigError
from negpo.lab.sweep.spec import METHODS, Split, read_spec

BASE = {"lab": "tiny", "steps": 4, "trials": 2, "methods": {"npo": {"grid": {"learning_rate": [1e-3, 2e-3]}}}}


def write(tmp_path, **changes):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(BASE | changes))
    return path


def test_a_grid_becomes_all_combinations_on_top_of_what_is_fixed(tmp_path):
    grid = {"grid": {"learning_rate": [1e-3, 2e-3], "beta": [0.1, 0.5]}, "fixed": {"retain_loss": "nll"}}
    spec = read_spec(write(tmp_path, trials=4, methods={"npo": grid}))
    assert len(spec.methods["npo"]) == 4
    assert spec.methods["npo"][0] == {"retain_loss": "nll", "learning_rate": 1e-3, "beta": 0.1}


@pytest.mark.parametrize("name", ["lab", "lab_quick"])
def test_the_shipped_sweeps_compare_every_method_with_equal_budgets(name):
    spec = read_spec(CONFIGS / "sweeps" / f"{name}.yaml")
    assert set(spec.methods) == set(METHODS)
    assert {len(settings) for settings in spec.methods.values()} == {spec.trials}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 3}, "trials are not equal: every method needs 3 settings, but npo has 2"),
        ({"methods": {"npo": {"list": [{"max_steps": 9}, {}]}}}, "trial 0: max_steps belongs to the budget"),
        ({"methods": {"npo": {"list": [{"beta": 0.1}, {"beta": 0.1}]}}}, "lists the same settings twice"),
        ({"methods": {"nppo": {"list": [{}, {"beta": 1}]}}}, "unknown method nppo"),
        ({"methods": {"npo": {"grid": {}, "list": []}}}, "methods.npo needs either grid or list"),
        ({"methods": {}}, "methods is empty"),
        ({"lab": None}, "give either lab"),
        ({"target": "somewhere"}, "give either lab"),
        ({"seeds": [1, 1]}, "give at least one, each once"),
        ({"levels": [0.9, 1.2]}, "shares of the target's utility"),
        ({"stop_below": 0.9}, "must lie below the lowest level"),
        ({"steps": 0}, "steps is 0"),
        ({"trails": 3}, "unknown key 'trails'"),
    ],
)
def test_a_sweep_that_would_not_be_fair_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_spec(write(tmp_path, **changes))


def test_validation_and_report_may_not_share_rows(tmp_path):
    spec = read_spec(write(tmp_path, validation={"rows": [0, 1, 2], "report": [2, 3]}))
    with pytest.raises(ConfigError, match=r"share the forget rows \[2\]"):
        spec.split(4)
    with pytest.raises(ConfigError, match="names forget row 9"):
        read_spec(write(tmp_path, validation={"rows": [9]})).split(4)


def test_whole_authors_validate_and_the_others_are_reported():
    split = Split.of(40, 10)
    assert split.validation == (*range(10), *range(20, 30))
    assert split.report == (*range(10, 20), *range(30, 40))
    with pytest.raises(ConfigError, match="do not hold two blocks"):
        Split.of(10, 10)
