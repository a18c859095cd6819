"""The arithmetic lab as a folder: built once, equal for equal seeds, readable by every harness."""

import json
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from negpo.cli import main
from negpo.data.problems import custom_benchmark, read_problems
from negpo.data.protocols import find_protocol
from negpo.errors import ConfigError
from negpo.lab.arithmetic_build import SIZES, ArithmeticLabPaths, build_arithmetic_lab, train_model, write_problems
from negpo.lab.problem_lab import PROMPT
from negpo.lab.reason_demo import EngineResult, differing_answers, usable_engines

SMALLEST = replace(SIZES["tiny"], worked_rows=32, answer_rows=32)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder of `negpo demo reason` at the smallest size."""
    out = tmp_path_factory.mktemp("reason")
    arguments = ["demo", "reason", "--size", "tiny", "--samples", "4", "--problems", "10", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return out


@pytest.fixture(scope="module")
def lab(demo) -> ArithmeticLabPaths:
    (root,) = (demo / "labs").iterdir()
    return ArithmeticLabPaths(root)


def test_the_demo_draws_the_curve_and_keeps_its_samples(demo):
    page = (demo / "report.html").read_text(encoding="utf-8")
    assert "arithmetic: pass@k" in page
    assert "data:image/png;base64," in page
    result = json.loads((demo / "reason.json").read_text(encoding="utf-8"))
    assert set(result["tokens_per_second"]) == set(usable_engines())
    assert result["greedy_differences"] == {name: [] for name in usable_engines()[1:]}
    (summary,) = demo.glob("arithmetic-*/transformers/summary.json")
    assert json.loads(summary.read_text(encoding="utf-8"))["samples"] == 40


def test_a_lab_is_found_again_and_not_built_twice(demo, lab):
    before = (lab.model / "model.safetensors").stat().st_mtime_ns
    assert build_arithmetic_lab(demo / "labs", 0, "tiny") == lab
    assert (lab.model / "model.safetensors").stat().st_mtime_ns == before
    assert lab.manifest["cpu_seconds"] > 0


def test_the_benchmark_file_reads_every_test_problem_with_its_level(lab):
    bench, source = custom_benchmark(lab.benchmark)
    problems = read_problems(source, bench)
    assert len(problems) == SIZES["tiny"].test_problems
    assert {problem.level for problem in problems} == {f"Level {level}" for level in range(1, 6)}
    rows = [json.loads(line) for line in (lab.data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert not {row["problem"] for row in rows} & {problem.question for problem in problems}


def test_every_digit_is_a_token_before_and_after_a_reload(lab):
    tokenizer = AutoTokenizer.from_pretrained(lab.model)
    text = " 23-4=19,19+2=21 \\boxed{21}"
    pieces = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == list("234191922121")


def test_the_protocol_card_asks_as_the_training_rows_did():
    assert find_protocol("lab").prompt == PROMPT.replace("{question}", "{input}")


def test_two_trainings_of_one_seed_give_equal_weights_and_another_seed_others(tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        paths = ArithmeticLabPaths(tmp_path / name)
        write_problems(paths, seed, SMALLEST)
        train_model(paths.root, seed, SMALLEST)
        weights.append((paths.model / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_model_of_the_lab_loads_with_its_end_of_sequence_and_padding(lab):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lab.model), AutoTokenizer.from_pretrained(lab.model)
    assert model.config.eos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert model.config.vocab_size == len(tokenizer)


def test_an_unknown_size_is_named(tmp_path):
    with pytest.raises(ConfigError, match="'huge' is unknown; choose one of default, tiny"):
        build_arithmetic_lab(tmp_path, size="huge")


def test_the_demo_refuses_several_seeds(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["demo", "reason", "--seeds", "1", "2", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "takes one seed" in capsys.readouterr().err


def test_engines_that_differ_are_named_with_their_problems():
    first = EngineResult("transformers", {}, 1.0, [[1, 2], [3]])
    other = EngineResult("vllm", {}, 1.0, [[1, 2], [4]])
    assert differing_answers([first, other]) == {"vllm": [1]}
