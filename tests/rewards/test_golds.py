"""Gold answers are checked when the data arrives."""

import logging

import pytest

from negpo.errors import ConfigError, DataError
from negpo.rewards import VerifierPool, correctness_reward, grade, validate_gold, validate_golds


def rows(*golds, column="answer"):
    return [{"prompt": "?", column: gold} for gold in golds]


def test_good_golds_are_all_kept_and_counted_by_kind():
    report = validate_golds(rows("1", r"\frac12", "1,2", 3, 0.5, r"\text{east}"))
    assert report.kept == [0, 1, 2, 3, 4, 5]
    assert report.bad == []
    assert report.kinds == {"integer": 2, "expression": 1, "set": 1, "number": 1, "text": 1}


def test_zero_is_a_gold_like_any_other():
    assert validate_golds(rows(0, "0", 0.0, "0.0", "-0")).kept == [0, 1, 2, 3, 4]
    assert validate_golds([0, "0"]).kept == [0, 1]
    assert grade(r"\boxed{0}", 0).correct
    assert grade(r"\boxed{1}", 0).status == "wrong"
    assert correctness_reward()(completions=[r"\boxed{0}", r"\boxed{5}"], answer=[0, 0]) == [1.0, -1.0]


@pytest.mark.parametrize(
    "gold",
    [None, "", "  ", float("nan"), float("inf"), True, ["1"], {"a": 1}, r"\frac{1}{", "(1,2", "x" * 9000, 10**5000,
     "\x00", r"\frac{}{}+\otimes"],
    ids=lambda gold: repr(gold)[:20] if not isinstance(gold, int) or gold < 10 else "5001 digits",
)  # fmt: skip
def test_a_bad_gold_is_named_with_its_row_before_anything_runs(gold):
    with pytest.raises(DataError, match="2 of 4 gold answers cannot be graded: row 1: ") as info:
        validate_golds(rows("1", gold, "2", gold))
    assert info.value.row == 1
    assert "row 3: " in str(info.value)
    assert "skip_bad_golds" in str(info.value)
    assert len(str(info.value)) < 900


def test_skip_bad_golds_counts_them_and_keeps_the_rest(caplog):
    with caplog.at_level(logging.WARNING):
        report = validate_golds(rows("1", None, "2", r"\frac{1}{"), skip_bad_golds=True, source="train.jsonl")
    assert report.kept == [0, 2]
    assert [entry.row for entry in report.bad] == [1, 3]
    assert "2 of 4 gold answers cannot be graded: row 1: " in caplog.text


def test_a_data_set_of_bad_golds_only_is_an_error_even_when_they_may_be_skipped():
    with pytest.raises(DataError, match="no row is left"):
        validate_golds(rows(None, ""), skip_bad_golds=True)


def test_many_bad_golds_are_summed_up():
    with pytest.raises(DataError, match="100 of 100") as info:
        validate_golds(rows(*[None] * 100))
    assert str(info.value).count("is missing") == 5


def test_a_missing_column_is_named_with_those_that_exist():
    with pytest.raises(
        DataError, match=r"data.json, row 0, field 'answer': no column 'answer' \(columns: prompt, gold\)"
    ):
        validate_golds(rows("1", column="gold"), source="data.json")


def test_kinds_come_from_a_column_and_must_fit_the_gold():
    data = [{"answer": "1,2", "kind": "tuple"}, {"answer": "1,2", "kind": "set"}, {"answer": "5", "kind": None}]
    assert validate_golds(data, kind_column="kind").kinds == {"tuple": 1, "set": 1, "integer": 1}
    with pytest.raises(DataError, match=r"row 1: .*of kind 'text', not 'integer'"):
        validate_golds(rows("1", r"\text{east}"), kind="integer")
    with pytest.raises(ConfigError, match="unknown answer kind 'float'"):
        validate_golds(rows("1"), kind="float")


def test_golds_that_only_math_verify_can_read_are_asked_in_one_batch():
    with VerifierPool(workers=1, timeout=20) as pool:
        report = validate_golds(rows(r"\int_0^1 x dx", "1", r"\sum_{k=1}^{10} k"), pool=pool)
    assert report.kept == [0, 1, 2]


def test_a_gold_that_takes_too_long_to_read_is_refused_as_such():
    with pytest.raises(DataError, match="could not be read within the verifier's time limit"):
        validate_gold(r"\int_0^1 x dx", is_readable=lambda latex: None)


def test_a_reference_mode_takes_any_text():
    assert validate_golds(rows(r"\frac{1}{", "x"), mode="hendrycks").kept == [0, 1]
    with pytest.raises(DataError, match="row 1: the gold answer None is missing"):
        validate_golds(rows("x", None), mode="hendrycks")


def test_a_reward_validates_with_its_own_columns():
    reward = correctness_reward(answer_column="solution")
    assert reward.validate(rows("1", column="solution")).kept == [0]
    with pytest.raises(DataError, match="train, row 1, field 'solution': 1 of 2 gold answers"):
        reward.validate(rows("1", None, column="solution"), source="train")
    assert reward.validate(rows("1", None, column="solution"), skip_bad_golds=True).kept == [0]


SURROGATE = "\ud800"


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        (rf"\boxed{{{SURROGATE}}}", "7"),
        (r"\boxed{" + "9" * 5000 + "}", "9"),
        (r"\boxed{" + "Z" * 3990 + "_{36}}", "9"),
        (r"\boxed{9}", "9" * 3990),
        ("one " + "trillion " * 400, "9"),
        (r"\boxed{" + "9" * 3990 + "e999}", "9"),
        (r"\boxed{0." + "9" * 3990 + "}", "1"),
    ],
    ids=lambda text: ascii(text[:16]),
)
def test_lone_surrogates_and_huge_numbers_never_crash_and_never_count(response, gold):
    verdict = grade(response, gold)
    assert not verdict.correct
    assert "rror" not in verdict.reason


def test_a_lone_surrogate_beside_the_answer_does_no_harm():
    assert grade(rf"\boxed{{7}} {SURROGATE}", "7").correct
    report = validate_golds(rows("1" + SURROGATE, SURROGATE, "2"), skip_bad_golds=True)
    assert 2 in report.kept
