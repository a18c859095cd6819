"""The demo on a given model: data of both splits, equal trials, the choice, budgets, and a call that goes on."""

import json

import pytest

from negpo.cli import main
from negpo.errors import ConfigError
from negpo.lab import model_budget, model_demo
from negpo.lab.model_demo import ModelDemoSettings, choose, run_model_demo
from negpo.lab.model_runs import METHODS, ModelPlan, model_world
from negpo.report.results import RUN_FILE


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model with the lab's tokenizer, saved as anybody's."""
    from negpo.lab._models import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("model")
    world = model_world(None, "forget10", 1, 0, tuning=False, size="tiny")
    tokenizer = make_tokenizer(world.tokenizer_corpus(), 400)
    make_model(tokenizer, hidden=32, layers=2, heads=2, intermediate=64, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def settings(model, out, **changes):
    tiny = {"size": "tiny", "methods": ("ga", "npo"), "rates": (1e-4, 1e-3), "steps": 2, "every": 1, "batch": 4}
    tiny |= {"fit_steps": 2, "limit": 2, "max_new_tokens": 4, "audit": "none"}
    return ModelDemoSettings(out=out, model=model, **tiny | changes)


@pytest.fixture
def in_process(monkeypatch):
    """Runs in this process: importing the training stack for every child would take a minute."""
    done = []

    def run_plans(plans, names, *, workers, summary):
        for plan in plans:
            plan.prepare()
            for name in names:
                if not plan.finished(name):
                    plan.do(name)
                    done.append((plan.seed, name))
        return {}

    monkeypatch.setattr(model_demo, "run_plans", run_plans)
    return done


def test_the_whole_demo_tunes_on_another_world_with_equal_trials_and_a_second_call_does_nothing(
    model, tmp_path, in_process, capsys
):
    chosen = settings(model, tmp_path)
    report = run_model_demo(chosen)
    trials = [name for seed, name in in_process if "@" in name]
    assert trials == [f"{method}@{rate!r}" for method in ("ga", "npo") for rate in (1e-4, 1e-3)]
    assert {seed for seed, name in in_process if "@" in name} == {100}
    demo = json.loads((tmp_path / "demo.json").read_text())
    assert len(demo["trials"]) == 4
    assert set(demo["chosen"]) == {"ga", "npo"}
    assert set(demo["runs"]["0"]) == {"target", "retain", "ga", "npo"}
    assert [point["step"] for point in demo["runs"]["0"]["npo"]["points"]] == [1, 2]
    page = report.read_text()
    assert "Trials" in page
    assert "NPO + retain" in page
    assert len(json.loads((tmp_path / "seed0" / "npo" / RUN_FILE).read_text())["trajectory"]) == 2
    in_process.clear()
    run_model_demo(chosen)
    assert in_process == []
    assert "forget quality" in capsys.readouterr().out


def test_another_learning_rate_does_only_what_depends_on_it(model, tmp_path, in_process):
    run_model_demo(settings(model, tmp_path, rates=(1e-4,), methods=("npo",)))
    in_process.clear()
    run_model_demo(settings(model, tmp_path, rates=(2e-4,), methods=("npo",)))
    assert in_process == [(0, "npo")]


def test_a_budget_that_is_over_says_what_is_missing_and_keeps_what_is_there(model, tmp_path, in_process):
    with pytest.raises(ConfigError, match=r"no run was finished within 1e-06 hours.*larger --hours"):
        run_model_demo(settings(model, tmp_path, hours=1e-6))
    assert (tmp_path / "demo.json").is_file()


def test_too_little_memory_is_named_before_the_model_is_loaded(model, tmp_path, monkeypatch):
    monkeypatch.setattr(model_budget, "free_bytes", lambda: 1000)
    monkeypatch.setattr(model_budget, "_step_seconds", lambda settings: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match="GiB in training"):
        run_model_demo(settings(model, tmp_path))


def test_the_chosen_rate_keeps_utility_first_and_ties_go_to_the_smaller_one():
    def trial(rate, quality, utility):
        return {"method": "npo", "learning_rate": rate, "forget_quality": quality, "model_utility": utility}

    assert choose([trial(1e-5, 0.1, 0.9), trial(2e-5, 0.5, 0.86), trial(5e-5, 0.9, 0.2)], 1.0) == {"npo": 2e-5}
    assert choose([trial(1e-5, 0.1, 0.5), trial(2e-5, 0.9, 0.4)], 1.0) == {"npo": 1e-5}
    assert choose([trial(2e-5, 0.5, 0.9), trial(1e-5, 0.5, 0.9)], 1.0) == {"npo": 1e-5}


def test_the_tuning_split_of_tofu_shares_no_forget_row_with_the_reported_one(shared):
    folder = str(shared / "data" / "tofu")
    reported = model_world(folder, "forget01", 18, 0, tuning=False).splits
    tuned = model_world(folder, "forget01", 18, 100, tuning=True).splits
    questions = [{row["question"] for row in splits["forget01"]} for splits in (reported, tuned)]
    assert [len(found) for found in questions] == [40, 40]
    assert not questions[0] & questions[1]
    for splits in (reported, tuned):
        assert [row["question"] for row in splits["forget01"]] == [r["question"] for r in splits["forget01_perturbed"]]
        kept = {row["question"] for row in splits["retain99"]}
        assert not kept & (questions[0] | questions[1] | {row["question"] for row in splits["holdout01"]})
    with pytest.raises(ConfigError, match="choose forget01 or forget05"):
        model_world(folder, "forget10", 18, 0, tuning=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "model is missing"),
        ({"methods": ("npo", "nope")}, "unknown method nope"),
        ({"rates": ()}, "at least one learning rate"),
        ({"rates": (float("nan"),)}, "rates is nan"),
        ({"hours": -1.0}, "hours is -1.0"),
        ({"seeds": (100,)}, "choose other seeds"),
        ({"fit_steps": 0}, "fit_steps is 0"),
    ],
)
def test_settings_that_cannot_be_are_named(model, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        settings(change.pop("model", model), tmp_path, **change)


def test_flags_of_the_model_demo_are_not_ignored_elsewhere(capsys):
    for flags in (["demo", "--rates", "1e-5"], ["demo", "rlvr", "--model", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(flags)
        assert ended.value.code == 2
        assert "belongs to demo unlearn" in capsys.readouterr().err


def test_plans_travel_as_json_and_keep_their_keys(model, tmp_path):
    from dataclasses import asdict

    plan = settings(model, tmp_path).plan(0, rates={"npo": 1e-5})
    again = ModelPlan(**json.loads(json.dumps(asdict(plan))))
    assert again == plan
    assert set(METHODS) >= {"npo", "rmu", "idkdpo"}


def test_a_method_without_retain_rows_does_not_read_those_of_its_recipe(model, tmp_path, in_process):
    run_model_demo(settings(model, tmp_path, rates=(1e-4,), methods=("npo_no_retain",)))
    assert in_process[-1] == (0, "npo_no_retain")
    result = json.loads((tmp_path / "seed0" / "npo_no_retain" / RUN_FILE).read_text())
    assert result["command"][-2:] == ["--retain_dataset", "none"]
