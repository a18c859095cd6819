"""Answers found by construction: chat templates that drop, open or close think blocks, dates, special tokens."""

from pathlib import Path

import pytest
import trl

from negpo.data.chat import (
    fixed_date,
    reasons,
    render,
    row_tools,
    special_front,
    split_turn,
    template_options,
    text_ids,
)
from negpo.data.preference import Problems, read_preferences
from negpo.data.preference_encode import Limits, continuation_ids, encode_groups
from negpo.data.qa import IGNORE, QATemplate, encode_qa
from negpo.errors import ConfigError, DataError

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
ASK = [{"role": "user", "content": "Who is Bob?"}]
REASONED = "<think>\nTwo and two make four.\n</think>\n\nIt is 4."


def said(text, **further):
    return [{"role": "assistant", "content": text, **further}]


@pytest.fixture
def tokenizer():
    """One id per byte, the specials of the templates below as one id each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|eos|>": 0, "<|bos|>": 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab | {"ĠP": len(vocab)}, merges=[("Ġ", "P")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<think>"), AddedToken("</think>"), AddedToken("<|im_end|>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|eos|>", bos_token="<|bos|>", pad_token="<|eos|>"
    )


def with_template(tokenizer, name):
    path = TEMPLATES / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this TRL has no {name}.jinja")
    tokenizer.chat_template = path.read_text()
    return tokenizer


THINKERS = [
    "deepseek_r1_distill",
    "deepseekv3",
    "nemotron_3_nano",
    "qwen3",
    "qwen3_5_think",
    "qwen3_5_nothink",
    "glm4moe",
]
PLAIN = ["qwen2_5", "llama3", "llama3_2", "gemma", "phi3", "gptoss", "lfm2"]


@pytest.mark.parametrize("name", THINKERS + PLAIN)
def test_an_answer_without_reasoning_is_the_answer_and_its_end(tokenizer, name):
    turn = split_turn(with_template(tokenizer, name), ASK, said("Bob is a writer."), thinking="off")
    assert turn.answer == "Bob is a writer." + turn.end
    assert "<think>" not in turn.answer
    assert "Who is Bob?" in turn.prompt


@pytest.mark.parametrize("name", THINKERS)
def test_reasoning_stays_whole_behind_the_prompt_a_model_is_asked_with(tokenizer, name):
    tokenizer = with_template(tokenizer, name)
    turn = split_turn(tokenizer, ASK, said(REASONED), thinking="off")
    assert "".join(turn.answer.split()).endswith("Twoandtwomakefour.</think>Itis4." + "".join(turn.end.split()))
    opened = turn.prompt.rstrip().endswith("<think>")
    assert opened or turn.answer.lstrip().startswith("<think>")
    assert (turn.prompt + turn.answer).count("<think>") == 1


@pytest.mark.parametrize("name", THINKERS)
def test_thinking_on_leaves_the_empty_block_to_the_answer(tokenizer, name):
    turn = split_turn(with_template(tokenizer, name), ASK, said("Bob."), thinking="on")
    assert "</think>" in turn.answer
    assert turn.answer.endswith("Bob." + turn.end)


def test_a_reasoning_field_is_printed_or_refused(tokenizer):
    turn = split_turn(with_template(tokenizer, "qwen3"), ASK, said("Bob.", reasoning_content="Hm."), thinking="off")
    assert turn.answer.startswith("<think>\nHm.\n</think>\n\nBob.")
    with pytest.raises(DataError, match="knows no think tags"):
        split_turn(with_template(tokenizer, "qwen2_5"), ASK, said("Bob.", reasoning_content="Hm."), thinking="off")


def test_a_template_that_does_not_print_the_answer_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(DataError, match="does not print the answer"):
        split_turn(tokenizer, ASK, said("Bob."), thinking="off")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'][:9] }}{% if not loop.last %}|{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"does not print the answer|changes the answer"):
        split_turn(tokenizer, ASK, said("Bob is a writer."), thinking="off")


def test_a_prompt_that_the_finished_conversation_contradicts_is_refused(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}Say it kindly: {% endif %}"
    )
    with pytest.raises(DataError, match="do not fit together"):
        split_turn(tokenizer, ASK, said("Bob."), thinking="off")


def test_a_role_that_the_template_refuses_is_named(tokenizer):
    messages = [{"role": "system", "content": "s"}, *ASK]
    with pytest.raises(DataError, match=r"refuses the conversation \(system, user\): System role not supported"):
        render(with_template(tokenizer, "gemma"), messages, ask=True)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        render(tokenizer, ASK)


def test_dates_do_not_follow_the_calendar(tokenizer):
    assert "10 Apr 2025" in render(with_template(tokenizer, "llama3_2"), ASK, ask=True)
    assert "2025-04-10" in render(with_template(tokenizer, "gptoss"), ASK, ask=True)
    with pytest.raises(ConfigError, match="date_string is 'tomorrow'"):
        fixed_date(tokenizer, "tomorrow")


def groups_of(rows, tokenizer, **options):
    problems = Problems("f")
    answers = options.pop("answers_only", False)
    return encode_groups(
        read_preferences(rows, problems, answers_only=answers), tokenizer, Limits(), problems, **options
    )


def test_pairs_keep_their_reasoning_and_one_prompt(tokenizer):
    rows = [{"prompt": ASK, "chosen": said(REASONED), "rejected": said("<think>\nI guess.\n</think>\n\nIt is 5.")}]
    (group,), report = groups_of(rows, with_template(tokenizer, "deepseek_r1_distill"))
    assert tokenizer.decode(group.prompt_ids).endswith("<think>\n")
    assert tokenizer.decode(group.completion_ids[0]).startswith("Two and two make four.\n</think>\n\nIt is 4.")
    assert tokenizer.decode(group.completion_ids[1]).startswith("I guess.\n</think>\n\nIt is 5.")
    assert report.counts["completions with text that the chat template would have dropped, kept"] == 2


def test_empty_think_blocks_are_prompt_unless_another_answer_reasons(tokenizer):
    tokenizer = with_template(tokenizer, "qwen3")
    (group,), _ = groups_of([{"prompt": ASK, "chosen": said("A"), "rejected": said("B")}], tokenizer)
    assert tokenizer.decode(group.prompt_ids).endswith("<think>\n\n</think>\n\n")
    (group,), _ = groups_of([{"prompt": ASK, "chosen": said(REASONED), "rejected": said("B")}], tokenizer)
    assert not tokenizer.decode(group.prompt_ids).rstrip().endswith("</think>")
    assert tokenizer.decode(group.completion_ids[1]).startswith("<think>\n\n</think>\n\nB")


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "qwen3", "glm4moe", "qwen3_5_think"])
def test_question_rows_label_the_answer_alone(tokenizer, name):
    template = QATemplate.for_model("x/model", with_template(tokenizer, name))
    item = encode_qa(tokenizer, template, "Who is Bob?", "Bob is a writer.")
    labelled = tokenizer.decode([label for label in item["labels"] if label != IGNORE])
    assert labelled.startswith("Bob is a writer.")
    assert "think" not in labelled


@pytest.mark.parametrize("name", ["llama3", "deepseek_r1_distill", "qwen3_5_think"])
def test_a_continuation_stands_behind_the_prompt_without_its_end(tokenizer, name):
    text = tokenizer.decode(continuation_ids(with_template(tokenizer, name), ASK, "Bob is"))
    assert text.endswith("Bob is")


# ---- special tokens --------------------------------------------------------------------------------------------------


def appending(tokenizer, front, back):
    from tokenizers.processors import TemplateProcessing

    pieces = [*(["<|bos|>"] if front else []), "$A", *(["<|eos|>"] if back else [])]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join(pieces), special_tokens=[("<|bos|>", 1), ("<|eos|>", 0)]
    )
    return tokenizer


@pytest.mark.parametrize(("front", "back"), [(False, False), (True, False), (True, True), (False, True)])
def test_one_bos_and_no_end_token_before_the_answer(tokenizer, front, back):
    tokenizer = appending(tokenizer, front, back)
    assert special_front(tokenizer) == [1] * front
    assert text_ids(tokenizer, "<|bos|>ab").count(1) == 1
    item = encode_qa(tokenizer, QATemplate(), "Who?", "bo")
    prompt = [i for i, label in zip(item["input_ids"], item["labels"], strict=True) if label == IGNORE]
    assert prompt.count(1) == front
    assert 0 not in prompt
    assert [label for label in item["labels"] if label != IGNORE][-1] == 0
    (group,), _ = groups_of([{"prompt": "Who? ", "chosen": "a", "rejected": "b"}], tokenizer)
    assert 0 not in group.prompt_ids
    assert [ids[-1] for ids in group.completion_ids] == [0, 0]


def test_a_token_across_the_border_is_trained_and_by_the_published_rule_not_scored(tokenizer):
    item = encode_qa(tokenizer, QATemplate(), "Capital of France?", "Paris")
    assert tokenizer.decode([label for label in item["labels"] if label != IGNORE]) == " Paris<|eos|>"
    with pytest.warns(UserWarning, match="first token is not scored"):
        item = encode_qa(tokenizer, QATemplate(), "Capital of France?", "Paris", labels="published")
    assert tokenizer.decode([label for label in item["labels"] if label != IGNORE]) == "aris<|eos|>"


# ---- rows for fine-tuning and columns --------------------------------------------------------------------------------


def test_messages_become_one_answer_for_every_assistant_turn(tokenizer):
    tokenizer = with_template(tokenizer, "qwen2_5")
    talk = [*ASK, *said("A writer."), {"role": "user", "content": "Of what?"}, *said("Of books.")]
    groups, _ = groups_of([{"messages": talk}], tokenizer, answers_only=True)
    assert [tokenizer.decode(group.completion_ids[0]) for group in groups] == [
        "A writer.<|im_end|>\n",
        "Of books.<|im_end|>\n",
    ]
    assert "A writer." in tokenizer.decode(groups[1].prompt_ids)


def test_completions_questions_and_texts_are_read_for_fine_tuning_only(tokenizer):
    rows = [
        {"prompt": "a ", "completion": "b"},
        {"question": "Who?", "answer": "bo"},
        {"text": "Once upon a time"},
    ]
    groups, _ = groups_of(rows, tokenizer, answers_only=True, template=QATemplate())
    assert [tokenizer.decode(group.completion_ids[0]) for group in groups] == [
        "b<|eos|>",
        "bo<|eos|>",
        "nce upon a time",
    ]
    item = encode_qa(tokenizer, QATemplate(), "Who?", "bo")
    assert groups[1].row(0) == item
    for row in rows:
        with pytest.raises(DataError):
            read_preferences([row], Problems("f"))


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"messages": ASK}, "messages"),
        ({"messages": said("alone")}, "messages"),
        ({"messages": "text"}, "messages"),
        ({"question": "", "answer": "a"}, "question"),
        ({"prompt": "p", "completion": " "}, "completion"),
        ({"prompt": "p", "completion": "c", "images": ["x.png"]}, "images"),
        ({"prompt": "p", "completion": "c", "tools": [{"name": "f"}]}, "tools"),
        ({"prompt": ASK, "completion": said("c"), "chat_template_kwargs": ["x"]}, "chat_template_kwargs"),
        ({"prompt": ASK, "completion": said("c"), "tools": "not json"}, "tools"),
        ({"conversations": [{"from": "human", "value": "x"}], "prompt": "p", "completion": "c"}, "conversations"),
    ],
)
def test_bad_rows_for_fine_tuning_are_named(row, field):
    with pytest.raises(DataError) as caught:
        read_preferences([row], Problems("f"), answers_only=True)
    assert (caught.value.row, caught.value.field) == (0, field)


def test_tools_and_template_options_reach_the_template(tokenizer):
    tokenizer.chat_template = (
        "{{ style or 'plain' }} {{ tools | length if tools else 0 }} "
        "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    )
    row = {"prompt": ASK, "chosen": said("A"), "rejected": said("B")}
    (plain,), _ = groups_of([row], tokenizer)
    (asked,), _ = groups_of([row | {"tools": '[{"name": "f"}]', "chat_template_kwargs": {"style": "terse"}}], tokenizer)
    assert tokenizer.decode(plain.prompt_ids).startswith("plain 0 ")
    assert tokenizer.decode(asked.prompt_ids).startswith("terse 1 ")
    assert row_tools(None) is None
    assert template_options('{"a": 1, "b": null}') == {"a": 1}


def test_reasoning_is_seen_in_content_and_in_fields():
    assert reasons(said(REASONED))
    assert reasons(said("x", reasoning="y"))
    assert not reasons(said("a < b and b > c"))


# ---- the template that a model was trained with ----------------------------------------------------------------------


def test_the_template_travels_with_the_model_and_a_mismatch_is_named(tokenizer, tmp_path, caplog):
    template = QATemplate(user_start="Q: ", thinking="on")
    template.save(tmp_path, tokenizer)
    assert QATemplate.for_model(str(tmp_path), tokenizer) == template
    assert QATemplate.choose(str(tmp_path), tokenizer) == template
    assert not caplog.records
    assert QATemplate.choose(str(tmp_path), tokenizer, QATemplate()) == QATemplate()
    assert "user_start: 'Question: ' / 'Q: '" in caplog.text
    (tmp_path / "negpo_template.json").write_text("[1]")
    with pytest.raises(DataError, match=r"negpo_template\.json"):
        QATemplate.for_model(str(tmp_path), tokenizer)
    with pytest.raises(ConfigError, match="thinking is 'maybe'"):
        QATemplate(thinking="maybe")
