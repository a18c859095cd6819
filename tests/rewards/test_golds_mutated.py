"""Golds with one digit, sign or bracket changed are never right: pairs that once were, and a draw from real ones."""

import json
import random

import pytest

from negpo.rewards.grader import grade


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"1\frac{9}{5}", r"1\frac{4}{5}"),  # as a product it would be 9/5
        (r"-I(0) e^{-\frac{t}{RC}}", r"I(0) e^{-\frac{t}{RC}}"),  # I times 0 would be 0 on both sides
        ("2y(0)", "y(0)"),
        ("$t[0,4]$", "$t(0,4]$"),
        ("t[0,4)", "t(0,4]"),
        (r"-x \in [-2,7]", r"x \in [-2,7]"),
        ("16,3,3,1", "16,3,1,1"),
    ],
)
def test_changed_golds_that_once_were_taken_for_equal_are_wrong(answer, gold):
    assert grade(rf"\boxed{{{answer}}}", gold).status != "correct"
    assert grade(rf"\boxed{{{gold}}}", gold).status == "correct"


def changed(gold, rng):
    """``gold`` with one digit or sign exchanged; None where that leaves its value or nothing to exchange."""
    places = [i for i, c in enumerate(gold) if c.isdigit() or c in "+-"]
    if not places:
        return None
    place = rng.choice(places)
    others = "+-" if gold[place] in "+-" else "0123456789"
    new = gold[:place] + rng.choice([c for c in others if c != gold[place]]) + gold[place + 1 :]
    return None if new.lstrip("+-").strip() in ("0", "0.0") else new


def test_no_changed_gold_of_math500_is_right(shared):
    rng = random.Random(0)
    lines = (shared / "data" / "math500" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["answer"] for line in lines]
    pairs = [(new, gold) for gold in golds for _ in range(3) if (new := changed(gold, rng)) is not None]
    assert len(pairs) > 1000
    assert [pair for pair in pairs if grade(rf"\boxed{{{pair[0]}}}", pair[1]).status == "correct"] == []
