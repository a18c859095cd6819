"""Forget sets by share, authors and rows; requests in sequence; what is refused."""

import json

import pytest

from negpo.cli import main
from negpo.data.forget_sets import by_authors, by_rows, by_share, draw_authors, perturbed_of, requests
from negpo.errors import ConfigError, DataError


def test_tofu_shares_are_the_last_rows_and_nested():
    sizes = {percent: by_share(4000, percent) for percent in (10, 20, 30, 50, 90)}
    assert {percent: split.forget[0] for percent, split in sizes.items()} == {
        10: 3600, 20: 3200, 30: 2800, 50: 2000, 90: 400,
    }  # fmt: skip
    assert set(sizes[20].forget) < set(sizes[30].forget)
    assert sizes[90].retain == tuple(range(400))


def test_authors_are_blocks_of_rows_and_draws_repeat():
    split = by_authors(100, [1, 4])
    assert split.forget == (*range(20, 40), *range(80, 100))
    assert sorted((*split.forget, *split.retain)) == list(range(100))
    assert draw_authors(4000, 5, seed=3) == draw_authors(4000, 5, seed=3) != draw_authors(4000, 5, seed=4)


def test_rows_keep_their_numbers():
    forget, retain = by_rows(3, [2]).rows([{"question": "same"}] * 3)
    assert [row["source_row"] for row in forget] == [2]
    assert [row["source_row"] for row in retain] == [0, 1]


def test_requests_in_sequence_never_keep_what_was_asked_to_be_forgotten():
    found = requests([by_authors(100, [4]), by_authors(100, [2])], 100)
    assert found[1].forget == tuple(range(40, 60))
    assert not set(found[1].retain) & set(range(80, 100))
    with pytest.raises(ConfigError, match="request 1 asks for row 80"):
        requests([by_authors(100, [4]), by_authors(100, [4])], 100)


def test_rows_without_perturbed_answers_are_named():
    found, missing = perturbed_of(by_rows(10, [1, 5]), {5: {"perturbed_answer": ["x"]}})
    assert (found[0]["source_row"], missing) == (5, [1])
    with pytest.raises(DataError, match="none of the 1 forget rows has perturbed answers, first row 1"):
        perturbed_of(by_rows(10, [1]), {})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: by_share(100, 0), "percent is 0"),
        (lambda: by_authors(101, [0]), "no whole number of authors"),
        (lambda: by_authors(100, [5]), "author 5 does not exist"),
        (lambda: by_authors(100, [1, 1]), "names one twice"),
        (lambda: by_rows(3, [0, 1, 2]), "both must hold rows"),
        (lambda: by_rows(3, [7]), "row 7 does not exist"),
        (lambda: draw_authors(100, 5, seed=0), "count is 5"),
    ],
)
def test_sets_that_cannot_be_meant_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_command_writes_both_sets(tmp_path):
    full = tmp_path / "full.jsonl"
    full.write_text("".join(json.dumps({"question": f"q{i}", "answer": f"a{i}"}) + "\n" for i in range(6)))
    arguments = ["data", "forget", "--dataset", str(full), "--authors", "1", "--rows-per-author", "2"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert stop.value.code == 0
    rows = [json.loads(line) for line in (tmp_path / "out/forget.jsonl").read_text().splitlines()]
    assert [row["source_row"] for row in rows] == [2, 3]
