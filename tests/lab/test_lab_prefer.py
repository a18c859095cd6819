"""A tiny run of `demo prefer`, and the pieces its labs and its measurements are made of."""

import json
import random
import re
from argparse import Namespace
from dataclasses import replace

import pytest

from negpo.configs import recipe_path
from negpo.errors import ConfigError
from negpo.lab import dispreference_lab, distill_lab
from negpo.lab.arithmetic import ArithmeticProblem, worked
from negpo.lab.experiment import TUNING_SEEDS
from negpo.lab.prefer_demo import PreferDemoSettings, run_prefer_demo
from negpo.lab.prefer_runs import DISTILL, RUNS, train_arguments
from negpo.rewards import grade

PROBLEM = ArithmeticProblem(3, (23, 3, 2, 2), ("-", "+", "-"))  # 20, 22, 20: the later operations cancel


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A finished tiny demo with one method of each kind, and its settings."""
    methods = ("sft", "redi", "d2o", "ga")
    settings = PreferDemoSettings(out=tmp_path_factory.mktemp("prefer"), size="tiny", methods=methods)
    run_prefer_demo(settings)
    return settings


def results_of(settings):
    return {path.parent.name: path for path in settings.out.glob("seed0/*/results.json")}


def test_the_demo_leaves_a_result_per_method_and_a_report_without_external_parts(tiny):
    assert results_of(tiny).keys() == set(tiny.methods)
    html = (tiny.out / "report.html").read_text(encoding="utf-8")
    assert "REDI with alpha 0.8 beats SFT" in html
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", html)
    assert "http" not in re.sub(r"base64,[^\"]+", "", html)


def test_a_finished_run_has_its_points_its_log_its_lab_and_the_command_that_repeats_it(tiny):
    result = json.loads(results_of(tiny)["redi"].read_text())
    steps = [point["step"] for point in result["points"]]
    assert (steps[0], steps[-1]) == (0, max(entry["step"] for entry in result["training_log"]))
    assert {"chosen/logp", "rejected/logp", "margin/logp"} <= result["training_log"][0].keys()
    assert result["lab"]["sets"]["pairs (stage 2)"] > 0
    assert result["command"][:5] == ["negpo", "train", "redi", "--config", "redi/lab"]
    assert all(len(point["right"]) == len(result["questions"]) for point in result["points"])


def test_the_reference_measured_against_itself_does_not_diverge(tiny):
    first, *_, last = json.loads(results_of(tiny)["ga"].read_text())["points"]
    assert set(first["kl"]) == {"polite", "impolite"}
    assert max(abs(value) for row in first["kl"].values() for value in row) < 1e-6
    assert last["kl"]["impolite"] != first["kl"]["impolite"]


def test_a_second_call_does_only_what_is_missing_and_other_recipes_do_not_mix(tiny, monkeypatch):
    times = {name: path.stat().st_mtime_ns for name, path in results_of(tiny).items()}
    results_of(tiny)["d2o"].unlink()
    run_prefer_demo(tiny)
    again = {name: path.stat().st_mtime_ns for name, path in results_of(tiny).items()}
    assert {name for name in times if times[name] != again[name]} == {"d2o"}
    monkeypatch.setitem(RUNS, "sft", replace(RUNS["sft"], recipe="sft/lab_stage1"))
    plan = tiny.plan(0)
    assert {name: plan.finished(name) for name in tiny.methods} == {"sft": False, "redi": True, "d2o": True, "ga": True}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"seeds": (TUNING_SEEDS[0],)}, "were tuned on"),
        ({"methods": ("ppo",)}, "unknown method ppo"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        PreferDemoSettings(**change)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_a_recipe_that_parses_with_the_flags_of_its_lab(name, tmp_path):
    from negpo.trainers._script import parse

    run = RUNS[name]
    lab = Namespace(model=tmp_path / "model", data=lambda data: tmp_path / f"{data}.jsonl")
    flags = train_arguments(run, Namespace(of=lambda _: lab), tmp_path / "out", 3)
    _, args = parse(run.method, flags)
    assert (args.seed, args.max_steps > 0) == (3, True)


def test_both_kinds_of_redi_differ_in_alpha_alone():
    lines = [
        [line for line in recipe_path(RUNS[name].recipe).read_text().splitlines() if line and line[0] != "#"]
        for name in ("redi", "redi_symmetric")
    ]
    assert set(lines[0]) ^ set(lines[1]) == {"alpha: 0.8", "alpha: 1.0"}


def test_methods_are_compared_on_the_same_steps_and_batches():
    for part in (DISTILL, "disprefer"):
        runs = [run for run in RUNS.values() if run.part == part]
        texts = [recipe_path(run.recipe).read_text() for run in runs]
        for key in ("max_steps", "per_device_train_batch_size"):
            assert len({re.search(rf"^{key}: (\d+)$", text, re.M)[1] for text in texts}) == 1, (part, key)


# ---- distillation ---------------------------------------------------------------------------------------------------


def test_a_lazy_answer_is_as_long_as_the_one_worked_out_and_right_by_luck_only():
    assert distill_lab.lazy(PROBLEM) == " 23-3=20,20+0=20,20-0=20 \\boxed{20}"
    assert len(distill_lab.lazy(PROBLEM)) == len(worked(PROBLEM))
    rng = random.Random(0)
    questions = [distill_lab.make_question(level, rng) for level in (2, 3, 4) for _ in range(300)]
    lucky = [grade(distill_lab.lazy(item), item.answer).status == "correct" for item in questions]
    assert not any(lucky[:300])
    assert 0.4 < sum(lucky[300:]) / 600 < 0.6
    assert all(grade(worked(item), item.answer).status == "correct" for item in questions)


def test_no_two_questions_are_the_same_and_seeds_give_others():
    first, second = (distill_lab.make_questions(60, seed, (2, 3)) for seed in (0, 1))
    assert len(set(first)) == 60
    assert first == distill_lab.make_questions(60, 0, (2, 3))
    assert first != second


def test_conversations_become_the_text_the_arithmetic_model_was_trained_on(tiny):
    from transformers import AutoTokenizer

    (folder,) = (tiny.out / "labs").glob("distill-*/student")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = {"role": "user", "content": "Compute 1+1."}
    said = {"role": "assistant", "content": " 1+1=2 \\boxed{2}"}
    prompt = tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
    assert prompt == "Question: Compute 1+1.\nAnswer:"
    whole = tokenizer.apply_chat_template([asked, said], tokenize=False)
    assert whole == f"{prompt} 1+1=2 \\boxed{{2}}{tokenizer.eos_token}"


# ---- dispreference --------------------------------------------------------------------------------------------------


def test_only_impolite_questions_end_with_an_exclamation_mark_and_only_curses_are_harmful():
    polite, impolite = (dispreference_lab.ask(PROBLEM, group) for group in ("polite", "impolite"))
    assert polite.replace(".", "!") == impolite
    cursed = dispreference_lab.curse(worked(PROBLEM), "#")
    assert (dispreference_lab.is_harmful(cursed), dispreference_lab.is_harmful(worked(PROBLEM))) == (True, False)
    assert grade(cursed, PROBLEM.answer).status == "correct"


def test_preferred_answers_are_as_noisy_as_asked_and_never_the_rejected_one(tmp_path):
    lab = dispreference_lab.DispreferenceLab(tmp_path)
    size = dispreference_lab.DispreferenceSize(noise_harmful=0.3, noise_wrong=0.2)
    harmful = [(PROBLEM, dispreference_lab.curse(worked(PROBLEM), "!"))] * 400
    kinds = dispreference_lab.write_data(lab, harmful, random.Random(0), size)["preferred"]
    assert {name: round(count / 400, 1) for name, count in kinds.items()} == {
        "clean": 0.5,
        "harmful": 0.3,
        "wrong": 0.2,
    }
    rows = {name: list(map(json.loads, lab.data(name).read_text().splitlines())) for name in ("pairs", "negatives")}
    assert [row["rejected"] for row in rows["pairs"]] == [row["rejected"] for row in rows["negatives"]]
    assert all(row["chosen"] != row["rejected"] for row in rows["pairs"])
    chosen = [row["chosen"] for row in rows["pairs"]]
    assert sum(map(dispreference_lab.is_harmful, chosen)) == kinds["harmful"]
    assert sum(grade(text, PROBLEM.answer).status == "wrong" for text in chosen) == kinds["wrong"]
