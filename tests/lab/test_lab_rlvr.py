"""The whole `negpo demo rlvr` on a tiny lab: nothing is learnt, every part runs, finished work is kept."""

import importlib.util
import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from negpo.errors import ConfigError
from negpo.lab.arithmetic_build import ARITHMETIC
from negpo.lab.experiment import TUNING_SEEDS
from negpo.lab.rlvr_demo import RlvrSettings, run_rlvr_demo
from negpo.lab.rlvr_runs import RUNS
from negpo.lab.rlvr_runs import RlvrPlan as Plan
from negpo.lab.rlvr_watch import Known, Probe, ProbeAnswer, WatchedEngine
from negpo.rollout import Sample, Sampling

METHODS = ("nsr", "psr", "ngrpo", "grpo", "resrl")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Settings of a finished demo: two rollouts of every method, 10 problems with 8 samples."""
    out = tmp_path_factory.mktemp("rlvr")
    settings = RlvrSettings(out, size="tiny", methods=METHODS, steps=8, problems=10, samples=8)
    run_rlvr_demo(settings)
    return settings


def result(demo, name):
    return json.loads((demo.out / "seed0" / name / "results.json").read_text(encoding="utf-8"))


def test_all_methods_draw_the_same_number_of_samples_for_the_same_prompts(demo):
    results = [result(demo, name) for name in METHODS]
    assert {one["prompts"]["sha256"] for one in results} == {results[0]["prompts"]["sha256"]}
    assert {one["prompts"]["count"] for one in results} == {64}
    assert {tuple(rollout["samples"] for rollout in one["rollouts"]) for one in results} == {(512, 512)}
    assert [one["steps"] for one in results] == [8] * len(METHODS)


def test_a_run_keeps_its_evaluation_its_log_its_model_and_the_command_that_repeats_it(demo):
    run = result(demo, "psr")
    assert [row["n"] for row in run["problems"]] == [8] * 10
    assert {row["level"] for row in run["problems"]} == {f"Level {number}" for number in range(1, 6)}
    assert run["command"][:5] == ["negpo", "train", "nsr", "--config", "nsr/lab_psr"]
    assert run["config"]["preset"] == "psr"
    assert (demo.out / "seed0" / "psr" / "model" / "model.safetensors").exists()


def test_the_rollouts_are_described_over_all_answers_and_by_level(demo):
    run = result(demo, "nsr")
    assert [entry["step"] for entry in run["training_log"] if "mismatch/mean" in entry] == [1, 5]
    for rollout in run["rollouts"]:
        assert rollout["entropy"] > 0
        assert 0 <= rollout["right"] <= 1
        assert set(rollout["levels"]) <= {f"Level {number}" for number in range(1, 6)}


def test_the_report_has_every_method_and_no_external_part(demo):
    html = (demo.out / "report.html").read_text(encoding="utf-8")
    assert all(RUNS["arithmetic"][name].title in html for name in METHODS)
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", html)
    assert html.count("data:image/png") == 4


def test_the_summary_states_every_claim_with_an_interval_and_a_verdict(demo):
    summary = json.loads((demo.out / "rlvr.json").read_text(encoding="utf-8"))
    assert len(summary["claims"]) == 3
    for part in (part for claim in summary["claims"] for part in claim["parts"]):
        assert part["estimate"]["low"] <= part["estimate"]["value"] <= part["estimate"]["high"]
        assert part["verdict"] in ("holds", "open", "fails")
    assert set(summary["runs"]["nsr"]["pass_at_k"]) == {"1", "2", "4", "8"}


def test_a_second_call_does_only_what_is_missing(demo):
    def times():
        return {path.parent.name: path.stat().st_mtime_ns for path in demo.out.glob("seed0/*/results.json")}

    before = times()
    (demo.out / "seed0" / "grpo" / "results.json").unlink()
    run_rlvr_demo(demo)
    after = times()
    assert {name for name in before if before[name] != after[name]} == {"grpo"}


def test_results_of_other_settings_are_not_taken_for_finished(demo):
    plan = demo.plan(0)
    assert plan.finished("nsr")
    for changed in ({"steps": 9}, {"engine": "vllm"}, {"problems": 11}, {"samples": 9}):
        assert not Plan(**{**vars(plan), **changed}).finished("nsr")


def test_the_model_before_training_does_not_depend_on_how_training_goes(demo):
    assert Plan(**{**vars(demo.plan(0)), "steps": 9, "engine": "vllm"}).finished("base")


def test_the_probe_scores_whole_answers_as_plain_logits_do(demo):
    folder = demo.out / "seed0" / "nsr" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("Question: Compute 12+1.\nAnswer:")["input_ids"]
    texts = (" 12+1=13 \\boxed{13}", " \\boxed{13}")
    rows = [(*prompt, *tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts]
    answers = [ProbeAnswer("p", len(prompt), ids, complete) for ids, complete in zip(rows, (True, False), strict=True)]
    expected = []
    for ids in rows:
        scores = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected.append(scores[range(len(ids) - len(prompt)), ids[len(prompt) :]].sum().item())
    assert Probe(answers, tokenizer.pad_token_id).score(model) == pytest.approx(expected, abs=1e-4)


def test_a_watched_engine_describes_what_it_drew_and_is_otherwise_the_engine_itself(demo):
    tokenizer = AutoTokenizer.from_pretrained(demo.out / "seed0" / "nsr" / "model")
    texts = ((" 12+1=13,13-1=12 \\boxed{12}", " 12+1=13 \\boxed{13}"), (" 5 \\boxed{5}", " 5 \\boxed{5}"))
    known = {"a": Known("12", "Level 2", "Compute 12+1-1."), "b": Known("6", "Level 1", "Compute 5+1.")}

    class Engine:
        name = "fixed"

        def generate(self, prompt_ids, sampling, **options):
            ids = [[tokenizer(text)["input_ids"] for text in group] for group in texts]
            return [
                [Sample(p, i, row, [-0.5] * len(row), "stop") for i, row in enumerate(g)] for p, g in enumerate(ids)
            ]

    watched = WatchedEngine(Engine(), tokenizer, known, ARITHMETIC)
    watched.generate([tokenizer("a")["input_ids"], tokenizer("b")["input_ids"]], Sampling(n=2))
    (rollout,) = watched.rollouts
    assert (watched.name, watched.prompts, rollout["samples"]) == ("fixed", ["a", "b"], 4)
    assert (rollout["right"], rollout["all_wrong"], rollout["complete"], rollout["distinct"]) == (0.25, 0.5, 0.25, 0.75)
    assert rollout["entropy"] == pytest.approx(0.5)
    assert rollout["levels"]["Level 2"]["right"] == 0.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seeds": (0, TUNING_SEEDS[0])}, "tuned"),
        ({"seeds": (1, 1)}, "each once"),
        ({"methods": ("ppo",)}, "ppo.*psr"),
        ({"engine": "sglang"}, "sglang"),
        ({"steps": 0}, "steps is 0"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        RlvrSettings(**wrong)


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_draws_the_rollouts_and_every_sync_leaves_its_proof_in_the_report(demo, tmp_path):
    settings = RlvrSettings(tmp_path, size="tiny", methods=("nsr",), steps=8, engine="vllm", problems=10, samples=8)
    run_rlvr_demo(settings)
    run = json.loads((tmp_path / "seed0" / "nsr" / "results.json").read_text(encoding="utf-8"))
    synced = [entry for entry in run["training_log"] if "sync/max_gap" in entry]
    assert [entry["step"] for entry in synced] == [1, 5]  # before each of the two rollouts
    assert all(entry["sync/max_gap"] < 1e-3 and 0 < entry["mismatch/mean"] < 1e-3 for entry in synced)
    assert run["prompts"] == result(demo, "nsr")["prompts"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("data:image/png") == 5
