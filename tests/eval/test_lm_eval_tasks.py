"""The task folder for lm-eval users calls our grader."""

import importlib.util

import pytest

from negpo.configs import CONFIGS

pytest.importorskip("lm_eval")

FOLDER = CONFIGS / "lm_eval"


@pytest.fixture(scope="module")
def graders():
    spec = importlib.util.spec_from_file_location("negpo_graders", FOLDER / "negpo_graders.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lm_eval_finds_every_task_of_the_folder():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    assert set(manager.all_tasks) == {f"negpo_{name}" for name in ("math500", "aime24", "aime25", "amc23", "gsm8k")}


def test_a_boxed_answer_without_dollar_signs_scores(graders):
    row = {"problem": "1+1?", "answer": "2"}
    assert graders.math500_text(row) == "Problem: 1+1?\nAnswer:"
    assert graders.math500_results(row, ["so it is \\boxed{2}"]) == {"exact_match": 1.0, "unknown": 0.0}
    assert graders.math500_results(row, ["so it is \\boxed{3}"])["exact_match"] == 0.0


def test_zero_padded_and_decorated_golds_are_read_as_integers(graders):
    assert graders.aime24_results({"problem": "?", "answer": "025"}, ["\\boxed{25}"])["exact_match"] == 1.0
    assert graders.aime25_target({"problem": "?", "answer": "336^\\circ"}) == "336"
    assert graders.gsm8k_target({"question": "?", "answer": "so #### 1,234"}) == "1234"
