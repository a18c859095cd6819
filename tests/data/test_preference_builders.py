"""REDI's sets from graded traces, and step rows from Monte-Carlo values."""

import json

import pytest

from negpo.cli import main
from negpo.data.redi import REDIFilters, REDIReport, build_sets, from_openr1
from negpo.data.step_dpo import cut_at_pit, split_steps
from negpo.errors import ConfigError, DataError
from negpo.rollout import Sample
from negpo.rollout.step_values import StepSettings, best_of_value, build_step_rows


class Words:
    """A tokenizer whose tokens are words, with a chat template."""

    chat_template = "yes"
    eos_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": text.split()}

    def apply_chat_template(self, messages, **_):
        return " ".join(message["content"] for message in messages)

    def decode(self, ids, **_):
        return " ".join(ids)


def raw(problem, *generations, llama=None, verify=None, **more):
    flags = {"llama_verification": llama, "math_verify_reparsed_answer": verify or llama}
    return {"problem": problem, "generations": list(generations), "correctness": flags, "source": "olympiads", **more}


def build(rows, **filters):
    filters, report = REDIFilters(**filters), REDIReport()
    problems = from_openr1(rows, filters, report, "raw.jsonl")
    return *build_sets(problems, Words(), filters, report), report


def test_the_pair_is_the_first_right_and_the_first_wrong_trace():
    positives, pairs, report = build([raw("q", "w1", "r1", "r2", "w2", llama=[False, True, True, False])])
    assert [row["completion"][0]["content"] for row in positives] == ["r1", "r2"]
    (pair,) = pairs
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("r1", "w1")
    assert (pair["chosen_index"], pair["rejected_index"]) == (1, 0)
    assert pair["prompt"] == [{"role": "user", "content": "q"}]
    assert (report.problems, report.traces, report.positives, report.pairs) == (1, 4, 2, 1)


def test_a_trace_is_right_when_both_judges_say_so_and_unknown_is_never_a_negative():
    rows = [raw("q", "a", "b", "c", llama=[True, True, None], verify=[True, False, True])]
    _, pairs, report = build(rows)
    assert pairs[0]["rejected"][0]["content"] == "b"
    assert report.dropped["traces no judge could decide"] == 1
    _, pairs, _ = build([raw("q", "a", "c", llama=[True, None], verify=[True, True])])
    assert pairs == []


def test_every_filter_of_the_paper_drops_and_counts():
    rows = [
        raw("q", "a", "b", llama=[True, False], problem_is_valid="No"),
        raw("q", "a", "b", llama=[True, False]) | {"source": "cn_k12"},
        raw("q", "a", "b", llama=[True]),
        raw("q", llama=[]),
        raw("q", "a", "b", llama=[True, True]),
        raw("q", "a", "b", llama=[False, False]),
        raw("one two three", "a", "b", llama=[True, False]),
        raw("q", "a b c d", "b", llama=[True, False]),
        raw("q", "same", "same", llama=[True, False]),
        raw("q", "a", "b", llama=[True, False], problem_is_valid="Yes"),
    ]
    positives, pairs, report = build(rows, max_prompt_tokens=2, max_trace_tokens=3)
    assert len(pairs) == 1
    assert len(positives) == 6  # stage 1 keeps right traces whatever becomes of their pair
    assert sum(report.dropped.values()) == 9
    assert dict(report.rows())["dropped: pairs with a trace over 3 tokens"] == 1


def test_the_order_is_that_of_a_datasets_shuffle():
    from datasets import Dataset

    rows = [raw(f"q{i}", "a", "b", llama=[True, False]) for i in range(20)]
    _, pairs, _ = build(rows)
    expected = Dataset.from_list([{"i": i} for i in range(20)]).shuffle(seed=42)["i"]
    assert [pair["original_index"] for pair in pairs] == list(expected)


def test_a_row_without_the_columns_is_named():
    with pytest.raises(DataError, match=r"raw\.jsonl, row 0, field 'generations'"):
        build([{"problem": "q", "correctness": {}}])


def graded_run(folder):
    """What `negpo eval custom` leaves behind for one problem with four samples."""
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"benchmark": "sums", "protocol": {}}))
    texts = [("yes", "correct", "stop"), ("no", "wrong", "stop"), ("cut", "wrong", "length"), ("?", "unknown", "stop")]
    with open(folder / "samples.jsonl", "w") as samples, open(folder / "verdicts.jsonl", "w") as verdicts:
        for sample, (text, status, reason) in enumerate(texts):
            place = {"problem": "sums-1", "sample": sample}
            samples.write(json.dumps(place | {"text": text, "finish_reason": reason}) + "\n")
            verdicts.write(json.dumps(place | {"status": status}) + "\n")
    return folder


def test_the_command_turns_the_folder_of_an_evaluation_into_both_sets(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    questions = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(2)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (tmp_path / "sums.yaml").write_text("name: sums\ndata: sums.jsonl\n")
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path / "tokenizer")
    flags = [
        "--eval",
        graded_run(tmp_path / "run"),
        "--benchmark-file",
        tmp_path / "sums.yaml",
        "--out",
        tmp_path / "out",
    ]
    flags += ["--tokenizer", tmp_path / "tokenizer", "--max-prompt-tokens", "0"]
    with pytest.raises(SystemExit) as end:
        main(["data", "redi", *map(str, flags)])
    assert end.value.code == 0
    (pair,) = map(json.loads, (tmp_path / "out" / "pairs.jsonl").read_text().splitlines())
    assert pair["prompt"] == [{"role": "user", "content": "1+1?"}]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("yes", "no")
    counts = json.loads((tmp_path / "out" / "report.json").read_text())["counts"]
    assert counts["dropped: traces cut by the sampling limit"] == counts["dropped: traces no judge could decide"] == 1


# ---- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a\nb\n\nc", "one", "\n\na\n", "a\n\n\nb"])
def test_steps_join_to_the_text_they_came_from(text):
    steps = split_steps(text)
    assert "".join(steps) == text
    assert all(step.strip() for step in steps)


def test_best_of_value_is_the_mean_over_all_subsets():
    from itertools import combinations

    grades = [True, False, False, True, False]
    subsets = list(combinations(grades, 3))
    assert best_of_value(2, 5, 3) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert (best_of_value(0, 5, 5), best_of_value(1, 5, 5)) == (0.0, 1.0)


class Engine:
    """Continues with "right" as often as the prefix still allows: the world is lost after the word "slip"."""

    def generate(self, prompt_ids, sampling, *, prompt_keys):
        assert len(set(prompt_keys)) == len(prompt_ids)
        word = lambda ids: "wrong" if "slip" in ids else "right"
        return [[Sample(p, i, [word(ids)]) for i in range(sampling.n)] for p, ids in enumerate(prompt_ids)]


def grade(texts):
    return [None if gold == "?" else text.endswith("right") for text, gold in texts]


def test_values_drop_at_the_slip_and_the_pair_ends_there():
    rows = [{"prompt": "q ", "gold": "4", "right": ["good"], "wrong": ["fine \nslip \nmore \nend"]}]
    out, report = build_step_rows(rows, Engine(), Words(), grade, StepSettings(best_of=2, rollouts=4))
    assert out[0]["values"] == [1.0, 0.0, 0.0, 0.0]
    assert (report.pairs, report.prefixes) == (1, 4)
    chosen, rejected = cut_at_pit(out, "rows")
    assert (chosen["completion"], chosen["complete"]) == ("good", True)
    assert (rejected["completion"], rejected["complete"]) == ("fine \nslip \n", False)


def test_prompts_without_both_kinds_and_undecided_rollouts_are_counted():
    rows = [
        {"prompt": "q ", "gold": "4", "right": [], "wrong": ["a \nb"]},
        {"prompt": "q ", "gold": "?", "right": ["r"], "wrong": ["a \nb"]},
        {"prompt": "q ", "gold": "4", "right": ["r"], "wrong": ["one step only"]},
    ]
    out, report = build_step_rows(rows, Engine(), Words(), grade, StepSettings(best_of=1, rollouts=2))
    assert [row["values"] for row in out] == [[0.0]]
    assert sum(report.dropped.values()) == 2


def test_a_given_pit_wins_and_a_bad_one_is_named():
    row = {"prompt": "q", "chosen": "c", "steps": ["a", "b"], "values": [0.0, 1.0]}
    assert cut_at_pit([row], "rows")[1]["completion"] == "a"
    whole = cut_at_pit([row | {"pit": 1}], "rows")[1]
    assert (whole["completion"], whole["complete"]) == ("ab", True)
    for change, field in (
        ({"pit": 2}, "pit"),
        ({"pit": True}, "pit"),
        ({"values": [1]}, "values"),
        ({"steps": []}, "steps"),
    ):
        with pytest.raises(DataError, match=f"rows, row 0, field '{field}'"):
            cut_at_pit([row | change], "rows")


def test_best_of_k_needs_k_rollouts():
    with pytest.raises(ConfigError, match="rollouts 3"):
        StepSettings(best_of=5, rollouts=3)
