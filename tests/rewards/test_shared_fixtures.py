"""Against the reference numbers: 97 % agreement, no false positive, benchmark golds, reference modes."""

import json
import time
from itertools import pairwise

import pytest

from negpo.rewards import VerifierPool, grade
from negpo.rewards.reference import hendrycks, nsr, qwen


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return json.loads(path.read_text(encoding="utf-8"))


def test_verdicts_agree_with_the_wanted_ones_without_false_positives_or_delays(load_fixture):
    agreed = definite = 0
    for row in load_fixture("eval/grader_verdicts.json")["rows"]:
        if row["should_be"] is None:
            continue
        started = time.perf_counter()
        verdict = grade(row["response"], row["gold"])
        assert time.perf_counter() - started < 2, row["id"]
        assert not (verdict.correct and not row["should_be"]), row["id"]
        definite += 1
        agreed += verdict.status == ("correct" if row["should_be"] else "wrong")
    assert agreed / definite >= 0.97


@pytest.mark.parametrize(
    "file",
    ["math500/test.jsonl", "aime24/test.jsonl", "aime25/test.jsonl", "amc23/test.jsonl", "amc23/rllm_amc_83.json"],
)
def test_a_benchmark_accepts_its_own_golds_boxed_and_bare(shared, file):
    for row in rows_of(shared / "data" / file):
        gold = row["answer"]
        text = str(int(gold)) if isinstance(gold, float) else gold
        assert grade(f"Thus $\\boxed{{{text}}}$.", gold).correct, gold
        assert grade(text, gold).correct, gold
        assert grade(f"{text}.", gold).correct, gold


@pytest.mark.parametrize("file", ["math500/test.jsonl", "aime24/test.jsonl"])
def test_a_benchmark_accepts_its_own_solution_texts(shared, file):
    rows = rows_of(shared / "data" / file)
    refused = [row["answer"] for row in rows if not grade(row["solution"], row["answer"]).correct]
    assert not refused


def test_the_golds_of_a_benchmark_are_told_apart_from_each_other(shared):
    golds = sorted({row["answer"] for row in rows_of(shared / "data/math500/test.jsonl")})
    accepted = [(a, b) for a, b in pairwise(golds) if grade(f"\\boxed{{{a}}}", b).correct]
    assert all(b.startswith(a) for a, b in accepted), accepted  # 15 and 15 cm^2, nothing else


def test_extraction_and_normal_forms_of_the_reference_modes_are_exact(load_fixture):
    fixture = load_fixture("eval/answer_extraction.json")
    for row in fixture["extract"]:
        assert qwen.extract_answer(row["response"]) == row["qwen_extract(math)"]
        assert nsr.extract_answer(row["response"]) == row["nsr_extract"]
    for row in fixture["strip"]:
        assert qwen.strip_string(row["in"]) == row["qwen"]
        assert qwen.strip_string(row["in"], skip_unit=True) == row["qwen_skip_unit"]
        assert nsr.strip_string(row["in"]) == row["nsr"]
        assert hendrycks.normalize(row["in"]) == row["hendrycks"]


@pytest.mark.parametrize(
    ("mode", "column", "differences"),
    [
        ("hendrycks", "hendrycks", set()),
        ("prm800k", "prm800k", set()),
        ("qwen", "qwen", set()),
        # The original ran out of its one second on rows 67 to 71 and 212 (69 and 71 are plain identities).
        ("nsr", "nsr", {69, 71, 109, 212}),
        ("nsr_math", "nsr_math_path", {67, 69, 71, 109, 212}),
        ("math_verify", "mv_default", set()),
    ],
)
def test_a_reference_mode_repeats_the_recorded_verdicts(load_fixture, mode, column, differences):
    rows = [row for row in load_fixture("eval/grader_verdicts.json")["rows"] if row["category"] != "adversarial"]
    with VerifierPool(workers=1, timeout=5) as pool:
        verdicts = pool.grade_many([(row["response"], row["gold"]) for row in rows], mode=mode)
    differing = {
        row["id"]
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict.known and verdict.correct != row[column]
    }
    assert differing == differences
