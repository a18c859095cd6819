"""Documents cut into training texts, and MUSE's layout of files."""

import json

import pytest

from negpo.data.chunks import chunk_texts
from negpo.data.rows import load_rows


class Letters:
    """One token per character."""

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_pieces_join_to_the_documents_and_leave_empty_ones_out():
    pieces = chunk_texts(Letters(), ["abcd", " ", "efghij"], 5)
    assert pieces == ["abcd\n", "\nefgh", "ij"]
    assert chunk_texts(Letters(), ["", "  "], 5) == []
    with pytest.raises(ValueError, match="at least 1 token"):
        chunk_texts(Letters(), ["a"], 0)


def test_arrays_of_plain_texts_become_rows_and_splits_are_told_apart(tmp_path):
    (tmp_path / "knowmem").mkdir()
    for name in ("forget_qa", "forget_qa_icl"):
        (tmp_path / "knowmem" / f"{name}.json").write_text(json.dumps([f"text of {name}"]))
    rows = load_rows(tmp_path, name="knowmem", split="forget_qa", required=("text",))
    assert rows == [{"text": "text of forget_qa"}]
