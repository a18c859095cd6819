"""Reading rows: every format, and errors that name file, row and field."""

import json

import pytest

from negpo.data.rows import fingerprint_rows, load_lines, load_rows
from negpo.errors import DataError

ROWS = [{"question": "Who?", "answer": "Ann."}, {"question": "Where?", "answer": "Rome\u2028."}]


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", json.dumps(ROWS)), ("a.json", json_lines(ROWS)), ("a.jsonl", "\ufeff" + json_lines(ROWS) + "\n")],
)
def test_arrays_and_json_lines_give_the_same_rows(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_rows(tmp_path / name) == ROWS
    assert load_rows(tmp_path, name="a") == ROWS


def test_parquet_files_and_folders_of_splits_are_found(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "forget10").mkdir()
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "forget10" / "train-00000-of-00001.parquet")
    assert load_rows(tmp_path, name="forget10") == ROWS


def test_text_files_give_one_text_per_line(tmp_path):
    (tmp_path / "a.txt").write_text("I do not know.\n\nNo idea.\n")
    expected = ["I do not know.", "No idea."]
    assert [row["text"] for row in load_rows(tmp_path / "a.txt", required=("text",))] == expected
    assert load_lines(tmp_path / "a.txt") == expected


def test_a_folder_with_a_dataset_card_goes_through_datasets_with_its_configuration(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "f.jsonl").write_text(json_lines(ROWS))
    card = "---\nconfigs:\n- config_name: forget10\n  data_files:\n  - split: train\n    path: files/f.jsonl\n---\n"
    (tmp_path / "README.md").write_text(card)
    assert load_rows(str(tmp_path), name="forget10") == ROWS
    with pytest.raises(DataError, match="forget05"):
        load_rows(str(tmp_path), name="forget05")


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        ({"question": "Who?"}, "answer", "missing; fields present: question"),
        ({"question": "Who?", "answer": None}, "answer", "missing"),
        ({"question": "Who?", "answer": " \n"}, "answer", "empty"),
        ({"question": 3, "answer": "x"}, "question", "expected text, found int '3'"),
        (["Who?"], None, "expected an object"),
    ],
)
def test_a_bad_row_is_named_with_file_row_and_field(tmp_path, row, field, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([*ROWS, row]))
    with pytest.raises(DataError, match=message) as caught:
        load_rows(path)
    assert (caught.value.file, caught.value.row, caught.value.field) == (str(path), 2, field)


@pytest.mark.parametrize("wrong", [[], "one", [""], [1]])
def test_lists_of_answers_are_checked_too(tmp_path, wrong):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{"question": "Who?", "answer": "Ann.", "perturbed_answer": wrong}]))
    with pytest.raises(DataError) as caught:
        load_rows(path, required_lists=("perturbed_answer",))
    assert caught.value.field == "perturbed_answer"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "Who?", "answer": "Ann."}\n{"question": \n', "line 2 is not readable"),
        ("a.json", b'[\n{"question": "Who?"},\n{"question" "x"}]', "line 3 is not readable"),
        ("a.json", b"", "no rows"),
        ("a.json", b'{"question": "\xff"}', "not UTF-8"),
        ("a.parquet", b"PAR1", "not a readable parquet"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_rows(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)


def test_missing_files_and_configurations_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.json.*no such file"):
        load_rows(tmp_path / "nothing.json")
    with pytest.raises(DataError, match=r"holds no forget10\.json"):
        load_rows(tmp_path, name="forget10")
    with pytest.raises(DataError, match="not a plain name"):
        load_rows(tmp_path, name="../forget10")


def test_the_fingerprint_sees_order_and_content_but_not_field_order():
    swapped = [dict(reversed(list(row.items()))) for row in ROWS]
    assert fingerprint_rows(ROWS) == fingerprint_rows(swapped)
    assert fingerprint_rows(ROWS) != fingerprint_rows(ROWS[::-1])


@pytest.mark.parametrize(
    ("name", "count"),
    [("full", 4000), ("forget01_perturbed", 40), ("forget10_perturbed", 400), ("retain_perturbed", 400)],
)
def test_real_tofu_files_have_their_published_sizes(shared, name, count):
    assert len(load_rows(shared / "data" / "tofu", name=name)) == count
    assert len(load_lines(shared / "data" / "tofu" / "idontknow.jsonl")) == 100
