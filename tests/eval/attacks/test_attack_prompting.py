"""Prompting: every way asks what it says, never gives the answer away, and bad material is named."""

import json

import pytest

from negpo.data.qa import labelled_ids
from negpo.errors import ConfigError, DataError
from negpo.eval.attacks import AttackData, AttackItem
from negpo.eval.attacks.measure import Asker
from negpo.eval.attacks.prompting import INSTRUCTIONS, WRAPPERS, Prompting, Translation, _shots, load_translations


@pytest.fixture
def asker(tiny_tokenizer, template):
    return Asker(tiny_tokenizer, template, max_new_tokens=50, positions=4096)


def prompt_text(asker, ask):
    return asker.tokenizer.decode(ask.prompt)


def test_every_way_puts_its_own_text_around_the_question(asker, attacked):
    ways = Prompting(shots=2).ways(asker, attacked, seed=0)
    assert set(ways) == (
        {"plain", "paraphrase_1", "examples_forget", "examples_retain", "prefix_10%", "prefix_25%", "prefix_50%"}
        | {f"wrapper_{name}" for name in WRAPPERS}
        | {f"instruction_{name}" for name in INSTRUCTIONS}
    )
    item = attacked.forget[3]
    texts = {way: prompt_text(asker, asks[3]) for way, asks in ways.items()}
    assert texts["plain"] == f"Q: {item.question}\nA:\n"
    assert texts["paraphrase_1"] == f"Q: {item.paraphrases[0]}\nA:\n"
    assert "librarian" in texts["wrapper_role"]
    assert item.question in texts["wrapper_role"]
    assert texts["instruction_de"].startswith("Q: Beantworte")
    assert texts["examples_retain"].count("A:") == 3
    assert "berg lives in" in texts["examples_retain"]
    assert texts["prefix_50%"].startswith(texts["plain"])


def test_all_ways_but_prefixes_recover_the_whole_answer_and_show_none_of_it(asker, attacked):
    ways = Prompting(shots=2).ways(asker, attacked, seed=0)
    for way, asks in ways.items():
        for item, ask in zip(attacked.forget, asks, strict=True):
            if way.startswith("prefix"):
                assert item.answer.endswith(ask.truth)
                assert ask.truth != item.answer
            else:
                assert ask.truth == item.answer
                assert item.answer not in prompt_text(asker, ask)


@pytest.mark.parametrize(("given", "rest"), [(0.1, "is a small town."), (0.4, "small town."), (0.95, "town.")])
def test_a_prefix_ends_between_words(asker, given, rest):
    assert asker.ask(AttackItem(0, "What is it?", "It is a small town."), given=given).truth == rest


def test_shots_are_never_the_question_itself_and_depend_on_seed_and_row_only(attacked):
    shots = _shots(attacked.forget, attacked.forget, "forget", 4, 0)
    for item, part in zip(attacked.forget, shots, strict=True):
        assert item.question not in [question for question, _ in part]
        assert len({question for question, _ in part}) == 4
    assert _shots(attacked.forget[5:], attacked.forget, "forget", 4, 0) == shots[5:]
    assert _shots(attacked.forget, attacked.forget, "forget", 4, 1) != shots


def test_the_worst_case_is_the_best_way_of_each_item_and_leaves_prefixes_out(ran):
    result = ran("prompting")
    for row in result.per_item:
        whole = {way: part for way, part in row["ways"].items() if not way.startswith("prefix")}
        assert row["value"] == max(part["rougeL_recall"] for part in whole.values())
        assert row["worst"]["answer_probability"] == max(part["answer_probability"] for part in whole.values())
        assert whole[row["way"]]["rougeL_recall"] == row["value"]
    assert result.value >= result.measures["plain:rougeL_recall"][0]
    assert [x for x, *_ in result.curves["prefix:rougeL_recall"]] == [0.1, 0.25, 0.5]


def test_without_translations_the_result_says_that_only_the_instruction_is_foreign(ran):
    assert any("no translations" in note for note in ran("prompting").notes)


def test_rows_without_paraphrases_are_noted_by_number(run, knowing, attacked):
    first = attacked.forget[0]
    bare = AttackItem(0, first.question, first.answer)
    data = AttackData((bare, *attacked.forget[1:]), ())
    result = run("prompting", knowing, data, families=("paraphrase", "in_context"))
    assert any("1 of 8 questions have no paraphrase, the first is row 0" in note for note in result.notes)
    assert any("no retain rows" in note for note in result.notes)
    assert result.settings["ways"] == {"plain": 8, "paraphrase_1": 7, "examples_forget": 8}


def test_translations_from_a_file_are_asked_where_they_exist(tmp_path, asker, attacked):
    rows = [{"index": 2, "question": "Wo ist Cyson?", "language": "de"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    attack = Prompting(families=("language",), translations=load_translations(tmp_path / "t.jsonl"))
    asks = attack.ways(asker, attacked, 0)["translated_de"]
    assert [ask.index for ask in asks] == [2]
    assert "Wo ist Cyson?" in prompt_text(asker, asks[0])
    assert asks[0].truth == attacked.forget[2].answer


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"index": "2", "question": "Wo?", "language": "de"}', "row 0, field 'index': must be a row number, not '2'"),
        ('{"index": 2, "question": "", "language": "de"}', "row 0, field 'question'"),
        ('{"index": 2, "question": "Wo?"}', "row 0, field 'language': must be text, not None"),
        ("{", "line 1 is not readable"),
    ],
)
def test_a_line_that_is_no_translation_is_named(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        load_translations(tmp_path / "t.jsonl")


def test_a_missing_file_of_translations_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_translations(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("translations", "message"),
    [
        ((Translation(99, "Wo?", "de"),), "names row 99"),
        ((Translation(1, "Wo?", "de"), Translation(1, "Wo denn?", "de")), "row 1 has 2 translations into de"),
    ],
)
def test_translations_that_do_not_fit_the_forget_set_are_refused(asker, attacked, translations, message):
    with pytest.raises(ConfigError, match=message):
        Prompting(translations=translations).ways(asker, attacked, 0)


def test_more_shots_than_rows_are_refused(asker, attacked):
    with pytest.raises(ConfigError, match="row 0 has only 7 other forget rows"):
        Prompting(shots=8).ways(asker, attacked, 0)


def test_an_answer_of_one_word_has_no_beginning_to_give(asker):
    data = AttackData((AttackItem(0, "Where?", "Rome"), AttackItem(1, "Who is it?", "Ann Dee")), ())
    ways = Prompting(families=("prefix",), given=(0.5,)).ways(asker, data, 0)
    assert [ask.index for ask in ways["prefix_50%"]] == [1]


def test_a_generation_is_limited_by_the_answers_length_and_the_setting(asker, attacked):
    ask = asker.ask(attacked.forget[0])
    assert ask.limit == min(50, 2 * len(labelled_ids(ask.item)) + Asker.SLACK)
