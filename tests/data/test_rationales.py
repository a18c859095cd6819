"""Rationales by self-consistency: who votes, what becomes a negative, and what the counts admit."""

import json

import pytest

from negpo.cli import main
from negpo.data.preference import Problems, read_preferences
from negpo.data.rationales import RationaleReport, Trace, build_rationales, pairs_of

QUESTIONS = {"a": "2+2", "b": "1+1"}


def traces(*answers, right=None):
    return [Trace(f"so {answer} ({i})", answer, right) for i, answer in enumerate(answers)]


def build(final, earlier, **options):
    report = RationaleReport()
    return build_rationales(QUESTIONS, final, earlier, report, **options), report


def test_the_most_frequent_answer_is_right_and_other_answers_of_earlier_checkpoints_are_wrong():
    rows, report = build({"a": traces("4", "5", "4")}, [{"a": traces("4", "7")}])
    (row,) = rows
    said = [text[0]["content"] for text in row["completions"]]
    assert said == ["so 4 (0)", "so 4 (2)", "so 7 (1)"]
    assert row["labels"] == [True, True, False]
    assert row["agreement"] == pytest.approx(2 / 3)
    assert report.dropped == {"problems without an answer to vote on": 1}
    assert pairs_of(rows)[0]["rejected"][0]["content"] == "so 7 (1)"


def test_a_tie_or_too_little_agreement_makes_no_row():
    _, tied = build({"a": traces("4", "5")}, [{"a": traces("7")}])
    assert tied.dropped["problems whose vote is a tie"] == 1
    _, weak = build({"a": traces("4", "4", None, None, None)}, [{"a": traces("7")}])
    assert weak.dropped["problems with agreement below 0.5"] == 1


def test_an_earlier_trace_without_an_answer_is_not_called_wrong():
    rows, report = build({"a": traces("4", "4")}, [{"a": traces(None)}])
    assert rows == []
    assert report.dropped["earlier traces without an answer"] == 1
    assert report.dropped["problems without a differing answer of an earlier checkpoint"] == 1


def test_votes_go_by_the_key_and_not_by_spelling():
    rows, _ = build({"a": traces("4", "4.0", "5")}, [{"a": traces("4.00", "6")}], key=float)
    assert rows[0]["labels"] == [True, True, False]


def test_where_golds_are_known_the_report_counts_right_answers_that_the_vote_made_negatives():
    final, earlier = {"a": traces("5", "5", right=False)}, [{"a": traces("4", right=True)}]
    _, report = build(final, earlier)
    assert (report.votes_judged, report.votes_right) == (1, 0)
    assert (report.negatives_judged, report.negatives_right) == (1, 1)


def write_run(folder, rows, benchmark="sums"):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"benchmark": benchmark, "protocol": {}}))
    with open(folder / "samples.jsonl", "w") as samples, open(folder / "verdicts.jsonl", "w") as verdicts:
        for sample, (text, answer) in enumerate(rows):
            place = {"problem": "sums-0", "sample": sample}
            samples.write(json.dumps(place | {"text": text, "finish_reason": "stop"}) + "\n")
            verdicts.write(json.dumps(place | {"status": "unknown", "extracted": answer}) + "\n")


def test_the_command_writes_rows_that_the_preference_trainers_read(tmp_path, capsys):
    (tmp_path / "sums.jsonl").write_text('{"question": "2+2", "answer": "4"}\n')
    (tmp_path / "sums.yaml").write_text("name: sums\ndata: sums.jsonl\n")
    write_run(tmp_path / "final", [("it is 4", "4"), ("4 it is", "4")])
    write_run(tmp_path / "early", [("maybe 9", "9")])
    flags = ["data", "rationales", "--eval", str(tmp_path / "final"), "--earlier", str(tmp_path / "early")]
    flags += ["--out", str(tmp_path / "out"), "--benchmark-file", str(tmp_path / "sums.yaml")]
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "rationales.jsonl").read_text().splitlines()]
    assert [row.sign for row in read_preferences(rows, Problems("rationales.jsonl"))] == [1, 1, -1]
    with pytest.raises(SystemExit) as refused:
        main([*flags, "--min-agreement", "2"])
    assert refused.value.code != 0
    assert "--min-agreement is 2.0" in capsys.readouterr().err


def test_answers_of_an_evaluation_become_stored_rollouts(tmp_path):
    (tmp_path / "sums.jsonl").write_text('{"question": "2+2", "answer": "4"}\n')
    (tmp_path / "sums.yaml").write_text("name: sums\ndata: sums.jsonl\n")
    write_run(tmp_path / "run", [("it is 4", "4"), ("", None), ("maybe 9", "9")])
    manifest = {"benchmark": "sums", "protocol": {"name": "lab"}}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    output = tmp_path / "rollouts.jsonl"
    flags = ["data", "rollouts", "--eval", str(tmp_path / "run"), "--output", str(output)]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--benchmark-file", str(tmp_path / "sums.yaml")])
    assert ended.value.code == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["completion"] for row in rows] == ["it is 4", "maybe 9"]
    assert all(row["verdict"] == "unknown" and "2+2" in row["prompt"] for row in rows)
