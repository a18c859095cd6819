"""The reasoning harness: resuming, refusing, and counting, with an engine that needs no model."""

import json
from dataclasses import dataclass, field

import pytest

from negpo.data import problems as problem_sets
from negpo.data.problems import Problem, last_box
from negpo.data.protocols import PROTOCOLS, find_protocol
from negpo.errors import ConfigError, DataError
from negpo.eval.reasoning import ReasoningRun, read_run
from negpo.rewards import VerifierPool, grade
from negpo.rollout.base import Collector, Sample, plan_requests


class Letters:
    """A tokenizer of single characters."""

    chat_template = None

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(character) for character in text]}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(map(chr, ids))


@dataclass
class Guesser:
    """An engine whose answer depends on the request's seed only: a third of its samples says 4, the others say 5."""

    name: str = "guesser"
    dies_after: int | None = None
    drawn: list[tuple] = field(default_factory=list)

    def generate(self, prompt_ids, sampling, *, prompt_keys=None, wanted=None, on_sample=None):
        requests = plan_requests(prompt_ids, sampling, prompt_keys, wanted)
        collector = Collector(requests, len(prompt_ids), on_sample)
        for request in requests:
            if self.dies_after is not None and len(self.drawn) >= self.dies_after:
                raise KeyboardInterrupt
            self.drawn.append((prompt_keys[request.prompt], request.index))
            text = "so \\boxed{4}" if request.seed % 3 == 0 else "so \\boxed{5}"
            collector.add(Sample(request.prompt, request.index, [ord(c) for c in text], [-0.5] * len(text), "stop"))
        return collector.result()


@pytest.fixture(scope="module")
def pool():
    with_workers = VerifierPool(workers=1)
    yield with_workers
    with_workers.close()


def make_run(folder, pool, engine, *, problems=4, n=6, **settings):
    protocol = PROTOCOLS["lab"].with_overrides(n=n)
    rows = [Problem(f"p{i}", f"{i} + 4 - {i}", "4", level=str(i % 2 + 1)) for i in range(problems)]
    settings = {"manifest": {"model": "m1", "tokenizer": "t1"}, "prompts_per_call": 2, **settings}
    return ReasoningRun(engine, Letters(), rows, "toy", protocol, folder, pool=pool, show_progress=False, **settings)


def test_a_killed_run_continues_without_drawing_a_sample_twice(tmp_path, pool):
    whole = make_run(tmp_path / "whole", pool, Guesser()).run()
    dying = Guesser(dies_after=9)
    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path / "cut", pool, dying).run()
    with open(tmp_path / "cut" / "samples.jsonl", "a") as file:
        file.write('{"problem": "p3", "sam')  # the line a kill left half written
    second = Guesser()
    continued = make_run(tmp_path / "cut", pool, second).run()
    assert not set(dying.drawn) & set(second.drawn)
    assert len(dying.drawn) + len(second.drawn) == 24
    assert continued == whole


def test_a_finished_run_started_again_draws_nothing(tmp_path, pool):
    first = make_run(tmp_path, pool, Guesser()).run()
    again = Guesser()
    assert make_run(tmp_path, pool, again).run() == first
    assert again.drawn == []


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed"), ({"n": 8}, "protocol_hash"), ({"manifest": {"model": "m2", "tokenizer": "t1"}}, "model")],
)
def test_samples_of_another_run_are_not_continued(tmp_path, pool, change, named):
    make_run(tmp_path, pool, Guesser()).run()
    with pytest.raises(ConfigError, match=f"samples of another run: .*{named}"):
        make_run(tmp_path, pool, Guesser(), **change).run()


def test_the_summary_counts_what_the_verdicts_say(tmp_path, pool):
    summary = make_run(tmp_path, pool, Guesser()).run()
    run = read_run(tmp_path)
    correct = sum(row["status"] == "correct" for row in run["verdicts"])
    assert 0 < correct < 24
    assert summary["pass_at_k"][0]["value"] == pytest.approx(correct / 24)
    assert [entry["k"] for entry in summary["pass_at_k"]] == [1, 2, 4, 6]
    assert summary["rates"]["truncated"]["value"] == 0
    assert summary["by_level"]["1"]["problems"] == 2
    assert set(run["samples"]) == {"p0", "p1", "p2", "p3"}


def test_the_report_of_two_runs_is_one_page_with_everything_escaped(tmp_path, pool):
    from negpo.report.reasoning import render_reasoning_report

    class Hostile(Guesser):
        def generate(self, *args, on_sample=None, **options):
            def spoil(sample):
                ids = [ord(c) for c in "<script>alert(1)</script> \\boxed{4}"]
                on_sample(Sample(sample.prompt, sample.index, ids, [], "length"))

            return super().generate(*args, on_sample=spoil, **options)

    make_run(tmp_path / "a", pool, Guesser()).run()
    make_run(tmp_path / "b", pool, Hostile()).run()
    page = render_reasoning_report([tmp_path / "a", tmp_path / "b"], tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 2
    assert "100.00%" in page  # every sample of b was truncated
    assert "difference in pass@k" in page


def test_unknown_verdicts_leave_n_and_are_bounded_from_both_sides(tmp_path):
    class Unsure:
        def grade_many(self, pairs, **_):
            from negpo.rewards import Verdict

            kinds = ["correct", "wrong", "unknown"]
            return [Verdict(status=kinds[i % 3], reason="test") for i in range(len(pairs))]

    summary = make_run(tmp_path, Unsure(), Guesser()).run()
    first = summary["pass_at_k"][0]
    assert first["value"] == pytest.approx(0.5)
    assert first["unknown_as_wrong"] == pytest.approx(1 / 3)
    assert first["unknown_as_correct"] == pytest.approx(2 / 3)
    assert summary["rates"]["unknown"]["value"] == pytest.approx(1 / 3)
    assert "value" not in summary["pass_at_k"][-1]  # six verdicts per problem are not there


def test_a_protocol_with_changed_settings_no_longer_carries_the_published_name():
    card = find_protocol("nsr")
    assert card.with_overrides(n=256).name == "nsr"
    changed = card.with_overrides(n=8)
    assert changed.name == "nsr*"
    assert changed.hash() != card.hash()
    with pytest.raises(ConfigError, match="unknown protocol 'foo'; known are nsr"):
        find_protocol("foo")


def test_the_last_balanced_box_counts():
    assert last_box(r"\boxed{1} then \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_box(r"\boxed{3} and \boxed{4") == "3"
    assert last_box("none") is None


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_bad_problem_files_are_named_with_row_and_field(tmp_path):
    no_gold = write_rows(tmp_path / "a.jsonl", [{"problem": "1+1", "answer": "2"}, {"problem": "1+2"}])
    with pytest.raises(DataError, match=r"a\.jsonl, row 1, field 'gold'"):
        problem_sets.read_problems(no_gold, problem_sets.BENCHMARKS["amc83"])
    twice = write_rows(tmp_path / "b.jsonl", [{"id": 1, "problem": "1+1", "answer": "2"}] * 2)
    with pytest.raises(DataError, match="1 ids stand on several rows"):
        problem_sets.read_problems(twice, problem_sets.BENCHMARKS["amc83"])
    broken = write_rows(tmp_path / "c.jsonl", [{"problem": "1+1", "answer": "\\frac{1}{"}])
    with pytest.raises(DataError, match=r"row 0, field 'answer'.*cannot be graded"):
        problem_sets.read_problems(broken, problem_sets.BENCHMARKS["amc83"])


def test_ones_own_file_is_described_in_yaml(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"q": "1+1?", "a": 2, "d": 3}])
    (tmp_path / "mine.yaml").write_text("name: mine\ndata: rows.jsonl\nfields: {question: q, gold: a, level: d}\n")
    bench, source = problem_sets.custom_benchmark(tmp_path / "mine.yaml")
    assert problem_sets.read_problems(source, bench) == [Problem("mine-0", "1+1?", "2", level="3")]
    (tmp_path / "typo.yaml").write_text("name: mine\ndata: rows.jsonl\nfeilds: {}\n")
    with pytest.raises(ConfigError, match="unknown key 'feilds'"):
        problem_sets.custom_benchmark(tmp_path / "typo.yaml")


@pytest.mark.parametrize(
    ("benchmark", "file", "size"),
    [
        ("math500", "math500/test.jsonl", 500),
        ("math", "math/test-00000-of-00001.parquet", 5000),
        ("aime24", "aime24/test.jsonl", 30),
        ("aime24", "aime24/rllm_aime.json", 30),
        ("aime25", "aime25/test.jsonl", 30),
        ("amc23", "amc23/test.jsonl", 40),
        ("amc23", "amc23/test-00000-of-00001.parquet", 40),
        ("amc83", "amc23/rllm_amc_83.json", 83),
        ("gsm8k", "gsm8k/test.jsonl", 1319),
        ("aqua", "aqua/test.jsonl", 254),
    ],
)
def test_published_files_load_with_every_gold_accepted(shared, benchmark, file, size):
    loaded = problem_sets.load_problems(benchmark, shared / "data" / file)
    assert len(loaded) == size
    if benchmark == "aime25":
        assert loaded[19].gold == "336"
    if benchmark.startswith(("aime", "amc")):
        assert all(not problem.gold.startswith("0") or problem.gold == "0" for problem in loaded)


@pytest.mark.parametrize(
    ("benchmark", "row", "gold"),
    [
        ("hmmt25", {"problem_idx": 3, "problem": "Find x.", "answer": r"\frac{1}{576}"}, r"\frac{1}{576}"),
        ("brumo25", {"problem_idx": 4, "problem": "Find y.", "answer": "0"}, "0"),
        ("minerva_math", {"question": "How bright?", "answer": "4.5e33"}, "4.5e33"),
        ("olympiadbench", {"id": 9, "question": "List all.", "final_answer": ["$69$,$84$"]}, "$69$,$84$"),
        ("olympiadbench", {"id": 2045, "question": "Which t?", "final_answer": ["$t(0,4]$"]}, r"$t \in (0,4]$"),
        ("math", {"problem": "0?", "answer": 0}, "0"),
    ],
)
def test_rows_of_other_benchmarks_are_read(tmp_path, benchmark, row, gold):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    [problem] = problem_sets.read_problems(str(file), problem_sets.BENCHMARKS[benchmark])
    assert problem.gold == gold


@pytest.mark.parametrize(("name", "field"), [("minerva_math", "gold"), ("olympiadbench", "final_answer")])
def test_every_gold_of_minerva_and_olympiadbench_can_be_graded(shared, tmp_path, name, field):
    rows = (shared / f"data/{name}/golds.jsonl").read_text(encoding="utf-8").splitlines()
    file = tmp_path / f"{name}.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for index, line in enumerate(rows):
            out.write(json.dumps({"question": "?", "id": index, field: json.loads(line)[field]}) + "\n")
    loaded = problem_sets.read_problems(str(file), problem_sets.BENCHMARKS[name])
    assert len(loaded) == len(rows)
    for problem in loaded:
        assert grade(f"Thus \\boxed{{{problem.gold}}}", problem.gold).correct, problem.gold
