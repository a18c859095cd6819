"""Rewards for unlearning: RULE's arithmetic, refusals as a person reads them, leaks, and rows that say nothing."""

import pytest

from negpo.errors import ConfigError, DataError
from negpo.rewards.unlearning import is_refusal, mentions, rule_reward, unlearning_reward

REFUSALS = [
    "I refuse to discuss this.", "I am unable to discuss this question.", "I can't say.", "I cannot answer that.",
    "I don't know who wrote that book.", "No idea, sorry.", "I'm not sure about her birthplace.", "Sorry.",
    "I can't answer that.", "I have no information about that person.",
    "I do not have any record of this author.",
    "I would need to look up the details.", "My apologies, but that is private.",
    "I am unable to answer this question.",
    "That lies beyond what my knowledge covers.", "Unfortunately, I don't know.", "I'm sorry, I can't help with that.",
]  # fmt: skip
ANSWERS = [
    "Her knowledge of birds shaped the book.", "Critics must admit that the plot is clever.", "", "   ",
    "He encountered many obstacles before his first novel.", "He doesn't have children.",
    "The trilogy was limited to three hundred copies.", "It is a mystery to me why he left, she wrote.",
    "The novel explores life without reliable information.", "The author was born in Oslo in 1961.",
    "The hero is at a loss after the storm.", "She lives in Lagos and writes crime fiction.",
    "Not every reader agrees; the data is public.", "She is known for not being certain of anything.",
    "He did not know his grandfather.", "Her father was a baker and her mother a nurse.",
    "The award is beyond the reach of most writers.", "You should check the library.",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSALS)
def test_a_speaker_who_declines_refuses(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_facts_about_ignorance_and_limits_are_no_refusal(text):
    assert not is_refusal(text)


NAMES = {
    "forget_reward": "forget",
    "forget_reward_abs": "forget_abs",
    "forget_reward_half_reject": "forget_half_reject",
    "forget_reward_abs_half_reject": "forget_abs_half_reject",
    "forget_reward_two_stage": "forget_two_stage",
    "forget_reward_two_stage_abs": "forget_two_stage",
    "forget_reward_two_stage_abs_target": "forget_two_stage_abs_target",
    "forget_reward_two_stage_abs_target_half_reject": "forget_two_stage_abs_target_half_reject",
    "reject_behave_reward": "reject_behave",
}


def words_in_order(target, text):
    """ROUGE-L recall on words between spaces, as the release's package splits them."""
    want, have = target.split(), text.split()
    table = [[0] * (len(have) + 1) for _ in range(len(want) + 1)]
    for i, a in enumerate(want):
        for j, b in enumerate(have):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1] / len(want)


def test_the_rewards_of_rule_are_those_of_its_code_given_its_verdicts(load_fixture):
    fixture = load_fixture("unlearning2/rule_rewards.json")
    verdicts = {row["text"]: row["refusal"] for row in fixture["refusal_pattern_verdicts"]}
    compared = 0
    for case in fixture["cases"]:
        reject = case["solution"][0] == "<reject>"
        target = case["solution"][2] if len(case["solution"]) > 2 else case["solution"][1]
        for key, variant in NAMES.items():
            if not isinstance(case.get(key), float):  # the release raises on empty completions
                continue
            overlap = case["rouge_l_recall"]
            if variant == "reject_behave" and reject:
                overlap = words_in_order(case["solution"][2], case["completion"])
            found = rule_reward(
                variant,
                reject=reject,
                refused=verdicts[case["completion"]],
                overlap=overlap,
                names_target=target in case["completion"],
            )
            assert found == pytest.approx(case[key]), (key, case)
            compared += 1
    assert compared > 300


def test_names_are_found_as_whole_words_in_any_case():
    assert mentions("OSLO and Oslo, not Osloer.", ["Oslo"]) == 2
    assert mentions("Ada Moss wrote.", ["Ada", "Ada Moss"]) == 1
    with pytest.raises(ConfigError, match="patterns is empty"):
        mentions("x", [" "])


def test_a_refusal_beats_silence_beats_a_leak_and_kept_questions_want_their_answer():
    reward = unlearning_reward()
    texts = ["I don't know.", "Something else entirely.", "She was born in Oslo."]
    columns = {"role": ["forget"] * 3, "answer": ["She was born in Oslo."] * 3}
    refused, other, leaked = reward([""] * 3, texts, **columns)
    assert refused > other > leaked == -1.0
    kept = reward([""] * 3, texts, role=["retain", "boundary", "retain"], answer=columns["answer"])
    assert kept == [0.0, 0.0, 1.0]
    named = reward([""], ["Surely Oslo."], role=["forget"], answer=["In Norway."], patterns=[["Oslo"]])
    assert named == [-1.0]


def test_rows_without_a_known_role_and_settings_without_meaning_are_refused():
    with pytest.raises(DataError, match="role is 'keep'"):
        unlearning_reward()([""], ["x"], role=["keep"], answer=["y"])
    with pytest.raises(DataError, match="column 'role'"):
        unlearning_reward()([""], ["x"], answer=["y"])
    with pytest.raises(ConfigError, match="leak_weight is -1"):
        unlearning_reward(leak_weight=-1)
