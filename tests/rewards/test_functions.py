"""Reward functions in TRL's signature."""

import asyncio
import inspect

import pytest

from negpo.errors import ConfigError, DataError
from negpo.rewards import VerifierPool, correctness_reward, format_reward, grade, length_reward
from negpo.rewards.functions import completion_text

PROMPTS = ["?", "?"]


def test_correctness_is_plus_or_minus_one_by_default_and_one_or_zero_on_request():
    completions = ["\\boxed{4}", "\\boxed{5}"]
    columns = {"prompts": PROMPTS, "completions": completions, "completion_ids": [[1], [2]], "answer": ["4", "4"]}
    assert correctness_reward()(**columns) == [1.0, -1.0]
    assert correctness_reward(wrong=0.0)(**columns) == [1.0, 0.0]


def test_unknown_is_none_and_reaches_the_metrics():
    metrics: dict[str, float] = {}
    extra: dict[str, list] = {}
    with VerifierPool(workers=1, timeout=0.5) as pool:
        reward = correctness_reward(pool=pool)
        rewards = reward(
            prompts=PROMPTS,
            completions=["\\boxed{\\sum_{k=1}^{\\infty} \\frac{\\sin k}{k^3}}", "\\boxed{1}"],
            answer=["1", "1"],
            log_metric=metrics.__setitem__,
            log_extra=extra.__setitem__,
        )
    assert rewards == [None, 1.0]
    assert metrics["verifier/unknown"] == 0.5
    assert extra["extracted_answer"][1] == "1"


def test_conversational_completions_are_read():
    message = [{"role": "assistant", "content": "\\boxed{4}"}]
    assert correctness_reward()(completions=[message], answer=["4"]) == [1.0]
    assert completion_text([{"role": "assistant", "content": [{"type": "text", "text": "hi"}]}]) == "hi"
    with pytest.raises(DataError, match="text or a list of messages"):
        completion_text(7)


def test_a_missing_or_wrong_length_column_is_an_error_that_names_it():
    with pytest.raises(DataError, match="needs the dataset column 'answer'; columns seen: solution"):
        correctness_reward()(completions=["\\boxed{4}"], solution=["4"])
    with pytest.raises(DataError, match="column 'answer' has 3 entries for 1 completions"):
        correctness_reward()(completions=["\\boxed{4}"], answer=["4", "4", "4"])


def test_kinds_can_come_from_a_column():
    reward = correctness_reward(kind_column="kind")
    assert reward(completions=["\\boxed{2,1}"] * 2, answer=["1,2"] * 2, kind=["set", "tuple"]) == [1.0, -1.0]


def test_asynchronous_rewards_are_coroutine_functions_with_the_same_values():
    columns = {"completions": ["\\boxed{4}", "4 words"], "completion_ids": [[0] * 4, [0] * 10], "answer": ["4", "5"]}
    for factory, options in (
        (correctness_reward, {}),
        (format_reward, {}),
        (length_reward, {"max_tokens": 10, "soft_tokens": 5}),
    ):
        plain, coroutine = factory(**options), factory(**options, asynchronous=True)
        assert inspect.iscoroutinefunction(coroutine)
        assert asyncio.run(coroutine(**columns)) == plain(**columns)
        assert plain.__name__ == coroutine.__name__ == factory.__name__


@pytest.mark.parametrize(
    ("completion", "boxed", "thinking", "expected"),
    [
        ("\\boxed{4}", True, False, 1.0),
        ("the answer is 4", True, False, 0.0),
        ("\\boxed{}", True, False, 0.0),
        ("<think>a</think> \\boxed{4}", True, True, 1.0),
        ("a</think> \\boxed{4}", True, True, 1.0),
        ("<think>\\boxed{4}</think> done", True, True, 0.0),
        ("<think>a \\boxed{4}", True, True, 0.0),
        ("<think>a</think>b</think> \\boxed{4}", True, True, 0.0),
        ("b <think>a</think> c", False, True, 0.0),
        ("<think>a</think> c", False, True, 1.0),
    ],
)
def test_the_format_reward_wants_a_box_and_one_closed_thinking_section(completion, boxed, thinking, expected):
    assert format_reward(boxed=boxed, thinking=thinking)(completions=[completion]) == [expected]


def test_the_length_reward_is_the_soft_overlong_punishment():
    reward = length_reward(max_tokens=100, soft_tokens=40)
    lengths = [10, 60, 80, 100, 500]
    assert reward(completions=["x"] * 5, completion_ids=[[0] * n for n in lengths]) == [0.0, 0.0, -0.5, -1.0, -1.0]
    with pytest.raises(DataError, match="one list of token ids per completion"):
        reward(completions=["x"])


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="asks for nothing"):
        format_reward(boxed=False)
    with pytest.raises(ConfigError, match="soft_tokens"):
        length_reward(max_tokens=10, soft_tokens=20)
    with pytest.raises(ConfigError, match="must be larger"):
        correctness_reward(correct=0, wrong=1)


# -- verdicts, labels, and answers that were cut -----------------------------------------------------------------------

CUT = {"completions": [r"\boxed{4}", "so m + n = 25 +", r"\boxed{4} Let me", r"\boxed{5}"],
       "answer": ["4", "25", "4", "4"], "completion_truncated": [False, True, True, False]}  # fmt: skip


@pytest.mark.parametrize(
    ("truncated", "values", "labels", "masked"),
    [
        ("unknown", [1.0, None, None, -1.0], [True, None, None, False], [False] * 4),
        ("wrong", [1.0, -1.0, -1.0, -1.0], [True, False, False, False], [False] * 4),
        ("mask", [1.0, -1.0, -1.0, -1.0], [True, False, False, False], [False, True, True, False]),
        ("soft", [1.0, -1.0, 1.0, -1.0], [True, False, True, False], [False] * 4),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_cut_answer_gets_what_the_setting_says(truncated, values, labels, masked, asynchronous):
    metrics: dict[str, float] = {}
    rewards = correctness_reward(truncated=truncated, asynchronous=asynchronous)(**CUT, log_metric=metrics.__setitem__)
    rewards = asyncio.run(rewards) if asynchronous else rewards
    assert rewards == values
    assert (rewards.labels, rewards.masked) == (labels, masked)
    assert metrics["verifier/truncated"] == 0.5


def test_the_default_never_grades_a_fragment():
    cut = correctness_reward()(completions=["so m + n = 25 +"], answer=["25"], completion_truncated=[True])
    assert cut == [None]
    assert cut.verdicts[0].reason == "cut off by the length limit"


def test_cut_answers_are_found_by_their_length_where_the_trainer_does_not_say():
    ids = [[5, 5], [5, 5, 5], [5, 5, 2], []]
    completions, answer = [r"\boxed{4}"] * 4, ["4"] * 4
    reward = correctness_reward(truncated="wrong", max_tokens=3, eos_token_id=2)
    assert reward(completions=completions, completion_ids=ids, answer=answer) == [1.0, -1.0, 1.0, 1.0]
    reward = correctness_reward(truncated="wrong", max_tokens=3, eos_token_id=[2, 5])
    assert reward(completions=completions, completion_ids=ids, answer=answer) == [1.0] * 4
    with pytest.raises(DataError, match="max_tokens needs one list of token ids per completion, got none for 4"):
        reward(completions=completions, answer=answer)


def test_a_setting_for_cut_answers_that_cannot_take_effect_is_an_error():
    with pytest.raises(DataError, match="truncated='mask' needs to know which completions were cut"):
        correctness_reward(truncated="mask")(completions=["4"], answer=["4"])
    with pytest.raises(DataError, match="'completion_truncated' has 2 entries for 1 completions"):
        correctness_reward()(completions=["4"], answer=["4"], completion_truncated=[True, False])
    with pytest.raises(ConfigError, match="unknown truncated='drop'; choose one of unknown, wrong, mask, soft"):
        correctness_reward(truncated="drop")


def test_labels_come_from_the_verdict_and_not_from_a_sum_with_penalties():
    long, short = [0] * 100, [0] * 10
    columns = {"completions": [r"\boxed{4}", r"\boxed{5}"], "answer": ["4", "4"], "completion_ids": [long, short]}
    judged = correctness_reward(wrong=0.0)(**columns)
    penalty = length_reward(max_tokens=100, soft_tokens=50)(**columns)
    assert [a + b for a, b in zip(judged, penalty, strict=True)] == [0.0, 0.0]
    assert judged.labels == [True, False]


def test_rewards_say_whether_they_judge_or_only_shape():
    assert correctness_reward().role == "verdict"
    assert format_reward().role == "shaping"
    assert length_reward(max_tokens=10, soft_tokens=5, asynchronous=True).role == "shaping"


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (r"So $\boxed{4}$. Checking: 2 +", "correct"),
        (r"<answer>4</answer> Let me", "correct"),
        ("The answer is 4", "wrong"),
        ("4", "wrong"),
        ("#### 4", "wrong"),
        (r"\boxed{4", "wrong"),
        ("\\boxed{4\nThen", "wrong"),
        (r"$\boxed{4$ and", "wrong"),
        (r"\boxed 4", "wrong"),
        (r"\boxed{4}. No, \boxed{", "wrong"),
        (r"<think>\boxed{4} hmm", "wrong"),
        (r"<think>a</think> $x = 4$ and", "wrong"),
    ],
)
def test_of_a_cut_response_only_an_answer_finished_before_the_cut_counts(response, status):
    for verdict in (
        grade(response, "4", truncated=True),
        *VerifierPool().grade_many([(response, "4")], truncated=[True]),
    ):
        assert verdict.status == status
        if status == "wrong":
            assert (verdict.extracted, verdict.reason) == (None, "no answer found: cut off by the length limit")
