"""`negpo data steps`: from the folder of an evaluation to rows for per-step DPO."""

import json

import pytest

from negpo.cli import _data_steps, main
from negpo.data.problems import Problem
from negpo.data.protocols import find_protocol
from negpo.data.redi import GradedProblem
from negpo.data.step_dpo import cut_at_pit
from negpo.errors import ConfigError
from negpo.rollout import Sample
from negpo.rollout.step_values import StepSettings, build_step_rows

CARD = {"name": "own", "prompt": "Q: {input} A:", "user_suffix": "", "thinking": None, "grader": "default"}
LOST = "so 1 \nslip 2 \nso \\boxed{3}"


class Words:
    """A tokenizer whose tokens are words."""

    chat_template = None
    eos_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": text.split()}

    def decode(self, ids, **_):
        return " ".join(ids)


class Engine:
    """Ends every prefix with the right result, unless it holds a slip; counts its calls."""

    calls = 0

    def generate(self, prompt_ids, sampling, *, prompt_keys):
        type(self).calls += 1
        said = ["\\boxed{9}" if "slip" in ids else "\\boxed{4}" for ids in prompt_ids]
        return [[Sample(p, i, [text]) for i in range(sampling.n)] for p, text in enumerate(said)]

    def close(self):
        pass


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Command line for a finished evaluation of two questions, the first with a right and two wrong solutions."""
    monkeypatch.setattr(_data_steps, "_model", lambda name: (Words(), name))
    monkeypatch.setattr("negpo.rollout.make_engine", lambda *_: Engine())
    monkeypatch.setattr(Engine, "calls", 0)
    (tmp_path / "sums.jsonl").write_text('{"question": "2+2", "answer": "4"}\n{"question": "1+1", "answer": "2"}\n')
    (tmp_path / "sums.yaml").write_text("name: sums\ndata: sums.jsonl\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps({"benchmark": "sums", "protocol": CARD}))
    rows = [("sums-0", "\\boxed{4}", "correct"), ("sums-0", LOST, "wrong"), ("sums-0", "no", "wrong")]
    rows += [("sums-1", "\\boxed{3}", "wrong"), ("sums-1", "?", "unknown")]
    with open(run / "samples.jsonl", "w") as samples, open(run / "verdicts.jsonl", "w") as verdicts:
        for sample, (problem, text, status) in enumerate(rows):
            place = {"problem": problem, "sample": sample}
            samples.write(json.dumps(place | {"text": text, "finish_reason": "stop"}) + "\n")
            verdicts.write(json.dumps(place | {"status": status}) + "\n")
    own = ["--eval", run, "--benchmark-file", tmp_path / "sums.yaml", "--model", "m", "--out", tmp_path / "out"]
    return [*map(str, own), "--best-of", "2", "--rollouts", "3", "--max-wrong", "1"]


def call(flags):
    with pytest.raises(SystemExit) as end:
        main(["data", "steps", *flags])
    return end.value.code


def test_the_command_values_prefixes_and_reports_what_was_dropped(flags, tmp_path):
    assert call(flags) == 0
    (row,) = map(json.loads, (tmp_path / "out" / "step_rows.jsonl").read_text().splitlines())
    assert row["prompt"] == "Q: 2+2 A:"
    assert row["values"] == [1.0, 0.0, 0.0]
    rejected = cut_at_pit([row], "rows")[1]
    assert (rejected["completion"], rejected["complete"]) == ("so 1 \nslip 2 \n", False)
    counts = json.loads((tmp_path / "out" / "report.json").read_text())["counts"]
    assert (counts["problems read"], counts["solutions read"], counts["pairs"]) == (2, 5, 1)
    assert counts["dropped: prompts without a right or without a wrong solution"] == 1
    assert counts["dropped: wrong solutions beyond 1 of a prompt"] == 1


def test_what_was_valued_is_not_valued_again_unless_a_setting_changes(flags, tmp_path):
    call(flags)
    before, calls = (tmp_path / "out" / "step_rows.jsonl").read_text(), Engine.calls
    assert call(flags) == 0
    assert (Engine.calls, (tmp_path / "out" / "step_rows.jsonl").read_text()) == (calls, before)
    call([*flags, "--rollouts", "4"])
    assert Engine.calls == 2 * calls


@pytest.mark.parametrize(
    ("change", "words"), [(["--best-of", "9"], "best-of-K needs"), (["--eval", "nowhere"], "no manifest.json")]
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(flags, change, words, capsys, monkeypatch):
    monkeypatch.setattr(_data_steps, "_model", lambda name: pytest.fail("a model was loaded"))
    assert call([*flags, *change]) == 2
    assert words in capsys.readouterr().err


def graded():
    return [GradedProblem("2+2", ["four", "five"], [True, False], "run", 0, "one")], [Problem("one", "2+2", "4")]


def test_chat_protocols_give_conversations_and_their_suffix():
    card = vars(find_protocol("chat"))
    (row,) = _data_steps.solution_rows(*graded(), card)
    assert row["prompt"] == [{"role": "user", "content": "2+2" + card["user_suffix"]}]
    assert row["right"] == [[{"role": "assistant", "content": "four"}]]
    assert (row["wrong"], row["gold"], row["id"]) == (["five"], "4", "one")


def test_a_protocol_that_switches_thinking_is_refused():
    with pytest.raises(ConfigError, match="thinking"):
        _data_steps.solution_rows(*graded(), CARD | {"prompt": None, "thinking": True})


def test_a_wrong_solution_without_text_is_counted_and_the_next_one_used():
    rows = [{"prompt": "q ", "gold": "4", "right": ["\\boxed{4}"], "wrong": [" ", "slip"]}]
    out, report = build_step_rows(rows, Engine(), Words(), lambda pairs: [True] * len(pairs), StepSettings())
    assert [row["steps"] for row in out] == [["slip"]]
    assert report.dropped == {"wrong solutions without text": 1}


@pytest.mark.parametrize("change", [{"max_wrong": 0}, {"separator": ""}])
def test_settings_that_leave_nothing_to_do_are_refused(change):
    with pytest.raises(ConfigError, match="max_wrong"):
        StepSettings(**change)
