"""Files are never half written, and JSON lines survive a kill."""

import json
import os

import numpy as np
import pytest

from negpo.data.io import append_jsonl, atomic_write, atomic_write_json, read_jsonl
from negpo.errors import DataError


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path, monkeypatch):
    path = atomic_write(tmp_path / "result.json", "old")

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DataError, match=r"result\.json.*No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_written_json_is_strict_and_reads_back(tmp_path):
    value = {"nan": float("nan"), "inf": -np.inf, "array": np.arange(3), "scalar": np.float32(0.5), "path": tmp_path}
    path = atomic_write_json(tmp_path / "deep" / "value.json", value)
    back = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert back == {"nan": "NaN", "inf": "-Infinity", "array": [0, 1, 2], "scalar": 0.5, "path": str(tmp_path)}


def test_a_torn_last_line_is_cut_and_writing_goes_on(tmp_path):
    path = tmp_path / "items.jsonl"
    append_jsonl(path, {"i": 0}, {"i": 1, "text": "ä"})
    with open(path, "ab") as file:
        file.write(b'{"i": 2, "text": "\xc3')
    assert [row["i"] for row in read_jsonl(path)] == [0, 1]
    append_jsonl(path, {"i": 3})
    assert [row["i"] for row in read_jsonl(path)] == [0, 1, 3]


def test_a_complete_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"i": 0}\n{"i": 1}')
    append_jsonl(path, {"i": 2})
    assert [row["i"] for row in read_jsonl(path)] == [0, 1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"i": 0}\n{"i": \n{"i": 2}\n')
    with pytest.raises(DataError, match="line 2"):
        read_jsonl(path)
