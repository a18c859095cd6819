"""The Countdown verifier: exact arithmetic, every spelling of an expression, nothing evaluated by Python."""

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negpo.errors import ConfigError, DataError
from negpo.rewards import correctness_reward, grade, validate_gold
from negpo.rewards.countdown import Task, is_gold, read_gold, to_postfix, tokens, value_of
from negpo.rewards.countdown_reward import countdown_reward
from negpo.rewards.noise import unit_hash, with_verifier_errors

GOLD = "24 from 3, 5, 3"


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (r"\boxed{3*(5+3)}", "correct"),
        (r"\boxed{(5+3)*3}", "correct"),
        (r"First 5+3 is 8, then $\boxed{3 \times \left(5 + 3\right)}$.", "correct"),
        ("<answer> 3 × (5 + 3) = 24 </answer>", "correct"),
        ("so the answer is 3*(5+3)", "correct"),
        ("3 x (5 + 3)", "correct"),
        ("[5+3]*3", "correct"),
        (r"\boxed{03*(5+3)}", "correct"),
        (r"\boxed{3*5+3}", "wrong"),  # 18
        (r"\boxed{3*(5+3)=25}", "wrong"),
        (r"\boxed{24}", "wrong"),
        (r"\boxed{8*3}", "wrong"),  # 8 was not given
        (r"\boxed{3*(5+3)*1}", "wrong"),
        (r"\boxed{3*(5+3}", "wrong"),
        (r"\boxed{3**(5+3)}", "wrong"),
        (r"\boxed{3!*(5+3)}", "wrong"),
        ("I do not know.", "wrong"),
        ("", "wrong"),
        (r"\boxed{3\oplus(5+3)}", "unknown"),  # perhaps a product in somebody's notation
        (r"\boxed{3(5+3)}", "unknown"),
    ],
)
def test_any_expression_that_hits_the_target_is_right_and_other_notations_are_unknown(response, status):
    assert grade(response, GOLD).status == status


def test_a_task_is_known_by_its_form_or_its_kind_and_ordinary_golds_are_left_alone():
    assert is_gold(GOLD)
    assert not any(map(is_gold, ("24", "3, 5, 3", "24 from me", r"\frac{24}{3}", "x from 1 to 3")))
    assert validate_gold(GOLD) == validate_gold(GOLD, "countdown") == "countdown"
    assert grade(r"\boxed{24}", "24").status == "correct"
    with pytest.raises(DataError, match="looks like '24 from 3, 5, 7'"):
        grade("1", "24", kind="countdown")
    with pytest.raises(DataError, match="at most 32"):
        read_gold("1 from " + ", ".join(["1"] * 33))


def test_fractions_on_the_way_are_exact():
    assert grade(r"\boxed{8/(3-8/3)}", "24 from 3, 3, 8, 8").status == "correct"
    assert grade(r"\boxed{\frac{8}{3-8/3}}", "24 from 3, 3, 8, 8").status == "correct"
    assert grade(r"\boxed{8/(3-8/3)}", "23 from 3, 3, 8, 8").status == "wrong"
    assert grade(r"\boxed{1/3+1/3+1/3}", "1 from 1, 3, 1, 3, 1, 3").status == "correct"


def test_division_by_zero_is_wrong_and_not_an_error():
    assert grade(r"\boxed{3/(3-3)}", "1 from 3, 3, 3").reason == "divides by zero"


def test_a_minus_sign_may_stand_before_an_operand():
    assert grade(r"\boxed{-3+27}", "24 from 3, 27").status == "correct"
    assert value_of(to_postfix(tokens("2*-3-4"))) == -10
    assert value_of(to_postfix(tokens("-(2-5)*2"))) == 6


def test_depth_and_length_cost_no_recursion_and_no_time():
    nested = "(" * 50_000 + "3*(5+3)" + ")" * 50_000
    assert grade(rf"\boxed{{{nested}}}", GOLD).status in ("correct", "wrong")
    assert value_of(to_postfix(tokens("(" * 5000 + "7" + ")" * 5000))) == 7
    assert grade(r"\boxed{" + "9*" * 5000 + "9}", GOLD).status == "wrong"  # counted before it is multiplied


def trees(depth=4):
    leaves = st.integers(0, 99).map(lambda n: (str(n), Fraction(n)))

    def join(pair_and_sign):
        (left, a), sign, (right, b) = pair_and_sign
        value = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b if b else None}[sign]()
        return None if value is None else (f"({left}){sign}({right})", value)

    return st.recursive(
        leaves,
        lambda inner: (
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(join).filter(lambda found: found is not None)
        ),
        max_leaves=8,
    )


@given(trees())
def test_a_tree_has_the_value_of_its_arithmetic(tree):
    text, value = tree
    assert value_of(to_postfix(tokens(text))) == value


@given(st.lists(st.sampled_from([*"0123456789", *"+-*/() "]), max_size=24).map("".join))
def test_a_text_is_an_expression_exactly_if_python_reads_it_as_one(text):
    """Python's own grammar as the oracle, on texts without what it knows beyond ours (**, //, calls, +3, 007)."""
    import ast

    beyond = ("**", "//", "()")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        theirs = not any(isinstance(node, ast.Call | ast.Tuple) for node in ast.walk(tree))
        unary = any(isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd) for node in ast.walk(tree))
    except SyntaxError as error:
        theirs, unary = False, "leading zeros" in str(error)
    if unary or any(part in text.replace(" ", "") for part in beyond):
        return
    try:
        to_postfix(tokens(text))
        ours = True
    except ValueError:
        ours = False
    assert ours == theirs


def test_rewards_know_tasks_by_their_gold_and_by_columns():
    texts = [r"\boxed{3*(5+3)}", r"\boxed{3+5+3}", r"\boxed{3(5+3)}"]
    assert list(correctness_reward(wrong=0.0)(completions=texts, answer=[GOLD] * 3)) == [1.0, 0.0, None]
    by_columns = countdown_reward()(completions=texts, nums=[[3, 5, 3]] * 3, target=[24] * 3)
    assert list(by_columns) == [1.0, 0.0, None]
    with pytest.raises(DataError, match="no column 'nums'"):
        countdown_reward()(completions=texts, numbers=[], target=[])


def test_a_brute_force_search_and_the_verifier_agree_on_every_expression_over_three_numbers():
    task, hits = Task((2, 3, 7), 13), 0
    operations = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
    for a, b, c in itertools.permutations(map(Fraction, task.numbers)):
        for (one, first), (two, second) in itertools.product(operations.items(), repeat=2):
            for text, value in (
                (f"({a}{one}{b}){two}{c}", second(first(a, b), c)),
                (f"{a}{one}({b}{two}{c})", first(a, second(b, c))),
            ):
                assert grade(rf"\boxed{{{text}}}", task.gold).status == ("correct" if value == 13 else "wrong")
                hits += value == 13
    assert hits > 1


# ---- a verifier that errs --------------------------------------------------------------------------------------------


def verdicts(count=4000, **errors):
    rng = random.Random(0)
    texts = [rf"\boxed{{{rng.randint(1, 10**9)}*0+7}}" for _ in range(count)]
    golds = [f"7 from {text[7:].split('*')[0]}, 0, 7" for text in texts[::2]]
    golds = [gold for gold in golds for _ in range(2)]  # every second answer is about other numbers: wrong
    reward = with_verifier_errors(correctness_reward(wrong=0.0), **errors)
    return list(reward(prompts=["q"] * count, completions=texts, answer=golds))


def test_a_verifier_without_errors_is_the_verifier():
    assert verdicts(20) == [1.0, 0.0] * 10


def test_errors_have_the_rates_that_were_asked_for_and_are_the_same_every_time():
    found = verdicts(false_positives=0.2, false_negatives=0.05)
    assert 1 - sum(found[::2]) / 2000 == pytest.approx(0.05, abs=0.02)
    assert sum(found[1::2]) / 2000 == pytest.approx(0.2, abs=0.03)
    assert found == verdicts(false_positives=0.2, false_negatives=0.05)
    assert found != verdicts(false_positives=0.2, false_negatives=0.05, seed=1)


def test_unknown_verdicts_stay_unknown_and_rates_are_shares():
    reward = with_verifier_errors(correctness_reward(wrong=0.0), false_positives=1.0, false_negatives=1.0)
    answers = [r"\boxed{3(5+3)}", r"\boxed{3*(5+3)}", r"\boxed{3+5+3}"]
    found = reward(prompts=["q"] * 3, completions=answers, answer=[GOLD] * 3)
    assert (list(found), found.labels) == ([None, 0.0, 1.0], [None, False, True])
    assert found.verdicts[2].reason.startswith("called right by mistake")
    assert reward.role == "verdict"
    with pytest.raises(ConfigError, match="false_positives=2"):
        with_verifier_errors(correctness_reward(), false_positives=2)


def test_hashes_are_uniform():
    values = sorted(unit_hash(0, str(i)) for i in range(2000))
    assert max(abs(value - i / 2000) for i, value in enumerate(values)) < 0.04
