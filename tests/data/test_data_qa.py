"""Prompts, label masks and padding, against the reference implementation's numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from negpo.data.collate import pad_batch
from negpo.data.qa import IGNORE, QATemplate, encode_qa, encode_rows, encode_text, has_answer
from negpo.errors import DataError

TAGS = QATemplate()


def template_of(config):
    if config["apply_chat_template"]:
        return QATemplate(chat_template=True, system_prompt=config.get("system_prompt", ""))
    return QATemplate(
        user_start=config["user_start_tag"],
        user_end=config["user_end_tag"],
        assistant_start=config["asst_start_tag"],
        assistant_end=config["asst_end_tag"],
    )


def test_questions_and_answers_match_the_reference(stub_tokenizer, load_fixture):
    for case in load_fixture("eval/ou_preprocess_collate.json")["chat"]:
        *shots, (question, answer) = zip(case["prompts"], case["responses"], strict=True)
        item = encode_qa(
            stub_tokenizer(**case["tokenizer"]),
            template_of(case["template_config"]),
            question,
            answer,
            shots=shots,
            generation=case["predict_with_generate"],
        )
        assert item == {"input_ids": case["input_ids"], "labels": case["labels"]}


def test_truncation_matches_the_reference_and_may_exceed_max_length_by_the_eos(stub_tokenizer, load_fixture):
    for case in load_fixture("eval/ou_preprocess_collate.json")["chat_truncation"]:
        item = encode_qa(stub_tokenizer(), TAGS, "who wrote", "bo dee cy", max_length=case["max_length"])
        assert item == {"input_ids": case["input_ids"], "labels": case["labels"]}


def test_running_text_matches_the_reference(stub_tokenizer, load_fixture):
    for case in load_fixture("eval/ou_preprocess_collate.json")["pretraining"]:
        item = encode_text(
            stub_tokenizer(add_bos=case["add_bos"]),
            case["text"],
            prefix=case["prefix"],
            max_length=case["max_length"],
            insert_space=case["insert_space"],
            generation=case["predict_with_generate"],
        )
        assert item == {"input_ids": case["input_ids"], "labels": case["labels"]}


def test_collation_matches_the_reference_with_and_without_the_eos_hole(load_fixture):
    for case in load_fixture("eval/ou_preprocess_collate.json")["collator"]:
        pad = 2 if case["pad_is_eos"] else 0
        items = [
            {"input_ids": [1, 4, 9, 2, 5], "labels": [IGNORE] * 5 + [7, 2]},
            {"input_ids": [1, 4, 9, 8, 8, 8, 2, 5], "labels": [IGNORE] * 8 + [7, 7, 2]},
        ]
        batch = pad_batch(items, pad, side=case["padding_side"], compat="ou-0.1")
        for name, value in batch.items():
            assert value.tolist() == case[name]
        honest = pad_batch(items, pad, side=case["padding_side"])
        assert honest["attention_mask"].sum(dim=1).tolist() == [5, 8]


def test_an_answer_cut_to_nothing_names_the_row_or_is_dropped(stub_tokenizer):
    rows = [{"question": "who?", "answer": "bo"}, {"question": "who wrote the long book?", "answer": "cy"}]
    with pytest.raises(DataError, match="max_length=6") as caught:
        encode_rows(stub_tokenizer(), TAGS, rows, max_length=6, file="forget.json")
    assert (caught.value.file, caught.value.row, caught.value.field) == ("forget.json", 1, "answer")
    items, kept = encode_rows(stub_tokenizer(), TAGS, rows, max_length=6, drop_empty=True)
    assert len(items) == 1
    assert kept == [0]


def test_a_prompt_that_is_not_a_prefix_warns(stub_tokenizer):
    class Merging(stub_tokenizer):
        def __call__(self, text, **options):
            return super().__call__(text.replace("Answer: b", "Answer:b"), **options)

    with pytest.warns(UserWarning, match="not the beginning"):
        encode_qa(Merging(), TAGS, "who?", "bo", labels="published")


def test_a_lone_eos_is_an_answer_only_where_nothing_was_cut():
    item = {"input_ids": [5, 6, 2], "labels": [IGNORE, IGNORE, 2]}
    assert has_answer(item, 2, max_length=3)
    assert not has_answer(item, 2, max_length=2)
    assert not has_answer(item, 2)
    assert not has_answer({"input_ids": [5], "labels": [IGNORE]}, 2, max_length=3)


@pytest.mark.parametrize(
    ("name", "chat", "expected"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", "[INST]", QATemplate(False, "", "[INST] ", " [/INST]", "", " ")),
        ("runs/x/checkpoint-10", "<<SYS>> [INST]", QATemplate(False, "", "[INST] ", " [/INST]", "", " ")),
        ("microsoft/phi-1_5", None, QATemplate()),
        ("google/gemma-7b-it", "<start_of_turn>", QATemplate(chat_template=True)),
        ("Qwen/Qwen2.5-1.5B-Instruct", "<|im_start|>", QATemplate(True, "You are a helpful assistant.")),
    ],
)
def test_templates_of_the_published_evaluations_are_recognised(stub_tokenizer, name, chat, expected):
    assert QATemplate.for_model(name, stub_tokenizer(chat_template=chat)) == expected


def test_llama_3_prints_the_fixed_date_and_the_hash_sees_the_chat_template(stub_tokenizer):
    tokenizer = stub_tokenizer(chat_template="<|start_header_id|>")
    template = QATemplate.for_model("meta-llama/Llama-3.2-1B-Instruct", tokenizer)
    assert template.date_string == "10 Apr 2025"
    assert template.hash(tokenizer) != template.hash(stub_tokenizer(chat_template="other"))


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), side=st.sampled_from(["left", "right"]))
def test_the_mask_recovers_every_item_even_when_pad_is_a_real_token(lengths, side):
    items = [{"input_ids": [(i + j) % 3 for j in range(n)]} for i, n in enumerate(lengths)]
    batch = pad_batch(items, 0, side=side)
    for item, ids, mask in zip(items, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == item["input_ids"]
    assert batch["input_ids"].dtype == torch.long


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="empty batch"):
        pad_batch([], 0)
