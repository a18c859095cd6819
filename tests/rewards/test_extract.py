"""The extraction ladder."""

import pytest

from negpo.rewards import grade
from negpo.rewards.extract import extract_answer


@pytest.mark.parametrize(
    ("response", "text", "source"),
    [
        ("so \\boxed{3}. No, \\boxed{4}.", "4", "boxed"),
        ("First \\boxed{3} then \\boxed{4}", "4", "boxed"),
        ("\\boxed{\\frac{1}{2}} and much more text", "\\frac{1}{2}", "boxed"),
        ("\\fbox{7}", "7", "boxed"),
        ("Hence $\\boxed7$.", "7", "boxed"),
        ("\\boxed 7.", "7.", "boxed"),
        ("Thus boxed{7}.", "7", "boxed"),
        ("\\boxed{1+\\boxed{7}}", "1+\\boxed{7}", "boxed"),
        ("Put it within \\boxed{}. It is \\boxed{7}.", "7", "boxed"),
        ("It is \\boxed{7}. I was asked to use \\boxed{}.", "7", "boxed"),
        ("$\\boxed{\\frac{1}{3}$ as shown", "\\frac{1}{3}", "boxed"),
        ("<think>maybe \\boxed{3}</think> It is \\boxed{7}.", "7", "boxed"),
        ("no opening tag </think> \\boxed{7}", "7", "boxed"),
        ("<answer>7</answer>", "7", "answer tag"),
        ("<answer>The answer is 7</answer>", "7", "answer tag"),
        ("The final answer is $7$. I hope it is correct.", "7", "phrase"),
        ("Answer: 7", "7", "phrase"),
        ("**Answer:** 12", "12", "phrase"),
        ("#### 1,234", "1,234", "phrase"),
        ("**Final Answer**\n\n$\\frac{3}{4}$", "\\frac{3}{4}", "phrase"),
        ("The answer is 7 because 3 and 4 make 7.", "7", "phrase"),
        ("The answer is $7$ or $8$.", "$7$ or $8$", "phrase"),
        ("x = 7", "x = 7", "whole response"),
        ("Therefore the area is $\\frac{3}{4}$.", "\\frac{3}{4}", "last formula"),
        ("After that there are 3 cats and 1,234 dogs left", "1,234", "last number"),
    ],
)
def test_the_ladder_finds_the_answer(response, text, source):
    extraction = extract_answer(response)
    assert (extraction.text, extraction.source) == (text, source)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "empty response"),
        (" \n ", "empty response"),
        ("<think> so \\boxed{3}", "the thinking section is never closed"),
        ("<think>\\boxed{3}</think>  ", "nothing follows the thinking section"),
        ("So the answer is \\boxed{}.", "no answer found: the box is empty"),
        ("first \\boxed{3}, finally \\boxed{1", "no answer found: the last box is never closed"),
        ("I have no idea how to even begin with this problem", "no answer found"),
    ],
)
def test_a_response_without_answer_is_wrong_and_says_why(response, reason):
    verdict = grade(response, "3")
    assert (verdict.status, verdict.reason, verdict.extracted) == ("wrong", reason, None)


def test_a_truncated_box_never_counts_as_the_number_it_begins_with():
    assert grade("the total is \\boxed{12", "12").status == "wrong"


def test_several_boxes_form_a_list_only_where_a_list_is_expected():
    assert grade("\\boxed{3}, \\boxed{4}", "3,4").correct
    assert grade("\\boxed{3}, \\boxed{4}", "4").correct
    assert grade("\\boxed{3} and \\boxed{4}", "3,4").correct
    assert grade("\\boxed{3} or \\boxed{4}", "4").status == "wrong"  # hedging
    assert grade("\\boxed{3} then \\boxed{4}", "3,4").status == "wrong"


def test_a_number_inside_a_fraction_or_sentence_is_not_the_answer():
    assert grade("Therefore the area is $\\frac{3}{4}$.", "4").status == "wrong"
    assert grade("so x = 3/4", "4").status == "wrong"
    assert grade("The value is 0.75.", "75").status == "wrong"
    assert grade("The answer is not 7.", "7").status == "wrong"
    assert grade("There are 7 cases and 3 people.", "7").status == "wrong"
    assert grade("The answer is 7 or 8.", "7").status == "wrong"


def test_a_box_far_from_the_end_is_found_in_a_long_response():
    assert extract_answer("\\boxed{7}" + " and so on" * 10_000).text == "7"
