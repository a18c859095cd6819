"""Preference formats, what is refused, and tokens equal to TRL's."""

import pytest
from datasets import Dataset

from negpo.data.preference import PreferenceRow, Problems, read_preferences
from negpo.data.preference_batch import collate_groups, lists_of, pairs_of, take
from negpo.data.preference_encode import Limits, encode_groups, prefixed_prompt_ids
from negpo.errors import ConfigError, DataError

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
USER = [{"role": "user", "content": "Why?"}]


def said(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|eos|>": 0, "<|pad|>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    # a merge across the border between prompt and answer: "x" + "y"
    merged = models.BPE(vocab=vocab | {"xy": len(vocab)}, merges=[("x", "y")])
    backend = Tokenizer(merged)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", pad_token="<|pad|>")
    made.chat_template = CHAT
    return made


def read(*rows, mode="error"):
    return read_preferences(list(rows), Problems("rows.jsonl", mode))


def encode(rows, tokenizer, mode="error", **limits):
    problems = Problems("rows.jsonl", mode)
    return encode_groups(read_preferences(rows, problems), tokenizer, Limits(**limits), problems)


def summary(rows):
    return [(row.group, row.sign, row.completion, row.score) for row in rows]


def test_pairs_become_two_rows_of_one_group():
    rows = read({"prompt": "p", "chosen": "good", "rejected": "bad"}, {"prompt": "p", "chosen": "a", "rejected": "b"})
    assert summary(rows) == [(0, 1, "good", None), (0, -1, "bad", None), (1, 1, "a", None), (1, -1, "b", None)]


def test_a_side_may_be_a_list_of_alternatives_of_any_length():
    rows = read({"prompt": "p", "chosen": ["a", "b"], "rejected": "c"}, {"prompt": "q", "rejected": ["d", "e", "f"]})
    assert [(row.group, row.sign) for row in rows] == [(0, 1), (0, 1), (0, -1), (1, -1), (1, -1), (1, -1)]


def test_messages_are_one_alternative_and_lists_of_messages_are_several():
    one = read({"prompt": USER, "chosen": said("a"), "rejected": [said("b"), said("c")]})
    assert [row.completion for row in one] == [said("a"), said("b"), said("c")]


def test_unpaired_rows_with_the_same_prompt_become_one_group():
    rows = read(
        {"prompt": "p", "completion": "a", "label": True},
        {"prompt": "q", "completion": "b", "label": False},
        {"prompt": "p", "completion": "c", "label": False},
    )
    assert summary(rows) == [(0, 1, "a", None), (0, -1, "c", None), (1, -1, "b", None)]


def test_scores_rank_a_list_and_labels_overrule_them():
    scored = read({"prompt": "p", "completions": ["a", "b", "c"], "scores": [0.2, 0.9, 0.5]})
    assert summary(scored) == [(0, -1, "a", 0.2), (0, 1, "b", 0.9), (0, 0, "c", 0.5)]
    labelled = read({"prompt": "p", "completions": ["a", "b"], "labels": [True, False], "scores": [0.1, 0.2]})
    assert [(row.sign, row.score) for row in labelled] == [(1, 0.1), (-1, 0.2)]


def test_the_flat_layout_reads_itself():
    flat = [
        {"prompt": "p", "completion": "a", "group": "g", "sign": 1, "score": 0.5},
        {"prompt": "p", "completion": "b", "group": "g", "sign": -1, "complete": False},
    ]
    assert read(*flat) == [PreferenceRow("p", "a", 0, 1, 0, 0.5), PreferenceRow("p", "b", 0, -1, 1, None, False)]


def test_an_implicit_prompt_is_split_off_as_trl_does():
    from trl.data_utils import extract_prompt

    for row in (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": [*USER, *said("a")], "rejected": [*USER, *said("b")]},
    ):
        chosen, rejected = read(row)
        theirs = extract_prompt(row)
        assert (chosen.prompt, chosen.completion, rejected.completion) == tuple(
            theirs[name] for name in ("prompt", "chosen", "rejected")
        )


BAD = {
    "empty completion": ({"prompt": "p", "chosen": " ", "rejected": "b"}, "chosen", "empty"),
    "identical chosen and rejected": ({"prompt": "p", "chosen": "b", "rejected": "b"}, "rejected", "identical"),
    "empty prompt": ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt", "empty"),
    "label is not boolean": ({"prompt": "p", "completion": "a", "label": 1}, "label", "found 1"),
    "sign is not -1, 0 or 1": ({"prompt": "p", "completion": "a", "group": 0, "sign": 2}, "sign", "sign is 2"),
    "score is not a number": ({"prompt": "p", "completions": ["a"], "scores": [None]}, "scores", "None"),
    "labels of another length": ({"prompt": "p", "completions": ["a"], "labels": [True, False]}, "labels", "1 compl"),
    "no labels": ({"prompt": "p", "completions": ["a"]}, "labels", "need labels"),
    "unknown format": ({"question": "p"}, None, r"\['question'\]"),
    "not an object": ("text", None, "found str"),
    "conversation ends with the user": ({"prompt": USER, "chosen": USER, "rejected": said("b")}, "chosen", "user"),
    "answers labelled true and false": (
        {"prompt": "p", "completions": ["a", "a"], "labels": [True, False]},
        None,
        "both true and false",
    ),
    "prompt ends with the assistant": ({"prompt": said("x"), "chosen": said("a")}, "prompt", "assistant"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_row_that_cannot_be_used_is_named_or_dropped_and_counted(kind):
    row, field, words = BAD[kind]
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    place = r"rows\.jsonl, row 1" + (f", field '{field}'" if field else "")
    with pytest.raises(DataError, match=f"{place}.*{words}.*bad_rows=drop"):
        read(good, row)
    problems = Problems("rows.jsonl", "drop")
    assert len(read_preferences([good, row], problems)) == 2
    assert problems.counts == {kind: 1}


def test_one_answer_labelled_both_ways_in_two_rows_is_found_at_the_second():
    rows = [{"prompt": "p", "completion": "a", "label": label} for label in (True, False)]
    other = {"prompt": "q", "completion": "a", "label": False}
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: .*both true and false"):
        read(rows[0], other, rows[1])
    problems = Problems("rows.jsonl", "drop")
    assert [row.sign for row in read_preferences([rows[0], other, rows[1]], problems)] == [1, -1]
    assert problems.counts == {"answers labelled true and false": 1}


def test_equal_answers_with_other_scores_are_ranked_not_refused():
    assert [row.sign for row in read({"prompt": "p", "completions": ["a", "a", "b"], "scores": [1, 0, 0.5]})] == [
        1,
        -1,
        0,
    ]


def test_nothing_left_is_an_error_even_when_dropping():
    with pytest.raises(DataError, match="no row is left"):
        read("text", mode="drop")


def trl_batch(rows, tokenizer, **settings):
    """What TRL's DPOTrainer feeds its model: (ids, completion mask) of the real tokens, chosen and rejected in turn."""
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class Prepare(DPOTrainer):
        def __init__(self):  # only the data preparation is asked for, which needs no model
            self._tokenizer = tokenizer

    args = DPOConfig(output_dir="unused", bf16=False, use_cpu=True, **settings)
    data = Prepare()._prepare_dataset(Dataset.from_list(rows), tokenizer, args, "train")
    batch = DataCollatorForPreference(1, max_length=args.max_length, truncation_mode=args.truncation_mode)(list(data))
    tensors = (batch["input_ids"], batch["completion_mask"], batch["attention_mask"].bool())
    pairs = [(ids[real].tolist(), mask[real].tolist()) for ids, mask, real in zip(*tensors, strict=True)]
    half = len(pairs) // 2
    return [item for pair in zip(pairs[:half], pairs[half:], strict=True) for item in pair]


PLAIN = [
    {"prompt": "Why x", "chosen": "yes, because", "rejected": "no"},  # "xy" merges across the border
    {"prompt": "Long question here? ", "chosen": "An answer that goes on for a while.", "rejected": "Short.<|eos|>"},
]
TALK = [
    {"prompt": USER, "chosen": said("Because it is."), "rejected": said("No")},
    {
        "prompt": [{"role": "system", "content": "Be kind"}, *USER],
        "chosen": said("Yes"),
        "rejected": said("Never, ever"),
    },
]


@pytest.mark.parametrize("rows", [PLAIN, TALK], ids=["plain", "conversational"])
@pytest.mark.parametrize("limits", [{}, {"max_length": 24}, {"max_length": 24, "truncation_mode": "keep_end"}])
def test_ids_and_masks_equal_those_of_trl(rows, limits, tokenizer):
    limits = {"max_length": None} | limits
    groups, _ = encode(rows, tokenizer, **limits) if rows is PLAIN else encode(rows, tokenizer, mode="drop", **limits)
    ours = [group.row(k) for group in groups for k in range(len(group))]
    ours = [(item["input_ids"], [int(label != -100) for label in item["labels"]]) for item in ours]
    assert ours == trl_batch(rows, tokenizer, **limits)


def test_a_prompt_is_encoded_once_for_all_its_answers(tokenizer, monkeypatch):
    from negpo.data import preference_encode

    asked = []
    original = preference_encode._ids
    monkeypatch.setattr(preference_encode, "_ids", lambda t, text, **o: asked.append(text) or original(t, text, **o))
    encode([{"prompt": "P? ", "completions": list("abcd"), "scores": [4, 3, 2, 1]}], tokenizer)
    assert asked.count("P? ") == 1
    assert len(asked) == 5


def test_over_long_answers_and_prompts_are_cut_or_dropped_and_counted(tokenizer):
    rows = [{"prompt": "ab", "chosen": "cdefgh", "rejected": "i"}, {"prompt": "a" * 30, "chosen": "b", "rejected": "c"}]
    groups, report = encode(rows, tokenizer, max_completion_length=3, max_prompt_length=20)
    assert [len(ids) for ids in groups[0].completion_ids] == [3, 2]
    assert len(groups[1].prompt_ids) == 20
    assert report.counts == {"completions cut (keep_start)": 1, "prompts cut to max_prompt_length=20": 1}
    groups, report = encode(rows, tokenizer, max_completion_length=3, max_prompt_length=20, overlong="drop")
    assert [group.signs for group in groups] == [[-1]]
    assert groups[0].lost
    assert any("dropped" in line for line in report.lines())


def test_a_prompt_that_fills_max_length_is_named_or_dropped(tokenizer):
    rows = [{"prompt": "a" * 30, "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    with pytest.raises(DataError, match=r"row 0, field 'prompt': the prompt has 30 tokens, max_length is 10"):
        encode(rows, tokenizer, max_length=10)
    groups, report = encode(rows, tokenizer, mode="drop", max_length=10)
    assert [group.source for group in groups] == [1]
    assert report.counts["prompts that fill max_length"] == 1


def test_prompt_and_answer_of_different_kinds_are_an_error(tokenizer):
    with pytest.raises(DataError, match="both be texts or both be conversations"):
        encode([{"prompt": "p", "chosen": said("a"), "rejected": said("b")}], tokenizer)


def test_a_tokenizer_without_end_token_or_template_is_an_error(tokenizer):
    rows = [{"prompt": USER, "chosen": said("a"), "rejected": said("b")}]
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        encode(rows, tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no eos token"):
        encode(rows, tokenizer)


def test_answers_that_never_end_are_counted_and_can_be_ended(tokenizer):
    tokenizer.chat_template = CHAT.replace("<|eos|>", "\n")
    rows = [{"prompt": USER, "chosen": said("a"), "rejected": said("b")}]
    _, report = encode(rows, tokenizer)
    assert report.counts["completions without the tokenizer's end token (chat template)"] == 2
    problems = Problems("rows.jsonl")
    groups, report = encode_groups(read_preferences(rows, problems), tokenizer, Limits(), problems, append_eos=True)
    assert [ids[-1] for ids in groups[0].completion_ids] == [0, 0]
    assert not report.counts


def test_unknown_limits_are_refused():
    with pytest.raises(ConfigError, match="overlong is 'cut'"):
        Limits(overlong="cut")
    with pytest.raises(ConfigError, match="max_length is 1"):
        Limits(max_length=1)


def test_batches_index_pairs_and_lists(tokenizer):
    rows = [
        {"prompt": "p", "chosen": ["a", "b"], "rejected": "c"},
        {"prompt": "q", "chosen": "d", "rejected": ["e", "f"]},
    ]
    groups, _ = encode(rows, tokenizer)
    batch = collate_groups(groups, 1)
    assert pairs_of(batch["group"], batch["sign"]).tolist() == [[0, 2], [1, 2], [3, 4], [3, 5]]
    lists = lists_of(batch["group"], batch["sign"] < 0, 2)
    assert lists.tolist() == [[2, -1], [4, 5]]
    assert take(batch["shared"], lists).tolist() == [[1, 0], [1, 1]]


def test_instructions_go_before_texts_and_into_the_system_message(tokenizer):
    assert tokenizer.decode(prefixed_prompt_ids(tokenizer, "Why?", "Be good. ")) == "Be good. Why?"
    talk = [{"role": "system", "content": "Short."}, *USER]
    text = tokenizer.decode(prefixed_prompt_ids(tokenizer, talk, "Be good."))
    assert text == "<system>Short.\n\nBe good.<|eos|><user>Why?<|eos|><assistant>"
