"""Alternate answers for AltPO: cut, filtered, counted."""

import pytest

from negpo.data.alternates import alternate_prompt, build_alternates, cut
from negpo.errors import ConfigError, DataError
from negpo.eval.metrics import rouge_recall

ROWS = [{"question": "Who wrote Blue?", "answer": "Ada Moss wrote it."}, {"question": "Where?", "answer": "In Oslo."}]


def test_a_continuation_ends_where_the_model_begins_the_next_question():
    assert cut(" Bea Fern did.\n\nQuestion: What else?") == "Bea Fern did."
    assert cut(" Bea.\nQ: next Question: more") == "Bea."
    assert cut("  ") == ""


def test_the_prompt_shows_the_answer_and_ends_with_the_cue():
    prompt = alternate_prompt("Who?", "Ada.")
    assert "Question: Who?\nAnswer: Ada." in prompt
    assert prompt.endswith("Alternate answer:")


def test_copies_of_the_truth_empty_and_repeated_draws_are_left_out_and_counted():
    drawn = [
        ["Bea Fern made it.", "", "Ada Moss wrote it.", "Bea Fern made it.", "Yes, Ada Moss wrote it."],
        ["In Oslo."],
    ]
    kept, report = build_alternates(ROWS, drawn, rouge_recall, max_rouge=0.9)
    assert [row["alternate"] for row in kept] == ["Bea Fern made it."]
    assert kept[0]["source_row"] == 0
    assert report.dropped == {"empty": 1, "too close to the answer": 3, "repeated": 1}
    assert report.without == [1]
    assert report.mean_rouge == pytest.approx(rouge_recall(ROWS[0]["answer"], "Bea Fern made it."))


def test_without_any_alternate_or_with_a_threshold_that_means_nothing_it_refuses():
    with pytest.raises(DataError, match="no alternate is left of 1 draws"):
        build_alternates(ROWS[:1], [["Ada Moss wrote it."]], rouge_recall)
    with pytest.raises(ConfigError, match="max_rouge is 2"):
        build_alternates(ROWS[:1], [["x"]], rouge_recall, max_rouge=2)
