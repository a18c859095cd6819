"""Reinforcement-learning recipes and ``negpo train``: every recipe parses, a small one trains."""

import json

import pytest
import torch
from unlearn_tiny import make_model, make_tokenizer

from negpo.cli.train import method_help
from negpo.configs import CONFIGS
from negpo.errors import ConfigError, DataError
from negpo.trainers import METHODS, SCRIPTS
from negpo.trainers._script import parse, run_training
from negpo.trainers._script.policy import RLScriptArguments, problem_rows

RL_METHODS = [method for method, script in SCRIPTS.items() if script.endswith("_script.policy")]
RECIPES = sorted(path for method in RL_METHODS for path in CONFIGS.glob(f"recipes/{method}/*.yaml"))
PUBLISHED = [path for path in RECIPES if not path.stem.startswith(("lab", "countdown"))]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_becomes_a_config_and_names_its_sources(path, tmp_path):
    flags = ["--bf16", "false", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    script, args = parse(path.parent.name, ["--config", str(path), *flags])
    assert script.model_name_or_path
    assert args.learning_rate <= 1e-6
    # one process of eight: a step of the published size times eight
    answers = args.generation_batch_size * 8
    assert answers in (8192, 4096, 1024)
    text = path.read_text()
    for word in ("Paper: arXiv", "Sources: ", "Expected", "Batch: "):
        assert word in text


def test_every_method_has_a_recipe_and_a_help_text_with_shared_settings():
    for method in RL_METHODS:
        assert method in METHODS
        assert any(path.parent.name == method for path in PUBLISHED), method
        text = method_help(method)
        assert "--updates_per_rollout" in text
        assert "--protocol" in text


def write_lab(folder):
    """A model, a tokenizer and two problems on disk."""
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(2)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model_name_or_path", str(folder / "model"), "--dataset", str(folder / "problems.jsonl")]


def test_a_recipe_trains_and_says_what_it_did(tmp_path):
    flags = ["--protocol", "lab", "--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu", "true"]
    flags += ["--num_generations", "2", "--per_device_train_batch_size", "2", "--updates_per_rollout", "2"]
    flags += ["--max_completion_length", "4", "--report_to", "none", "--gradient_checkpointing", "false"]
    run_training("nsr", [*write_lab(tmp_path), *flags, "--dtype", "float32", "--disable_tqdm", "true"])
    settings = json.loads((tmp_path / "out" / "negpo_train.json").read_text())
    assert settings["config"]["preset"] == "nsr"
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_unknown_key_names_the_nearest_one(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown flag --positive_wieght .did you mean --positive_weight"):
        parse("nsr", ["--positive_wieght", "1", "--per_device_train_batch_size", "8", "--use_cpu", "true"])


def test_golds_come_from_the_answer_or_the_last_box_and_a_missing_one_is_named(tmp_path):
    rows = [{"problem": "a?", "answer": 3}, {"problem": "b?", "solution": "so \\boxed{1} or \\boxed{x^{2}}"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    from negpo.data.protocols import find_protocol

    script = RLScriptArguments(dataset=str(tmp_path / "rows.json"))
    found = problem_rows(script, find_protocol("chat"))
    assert [row["answer"] for row in found] == ["3", "x^{2}"]
    assert found[0]["prompt"][0]["content"].startswith("a?")
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {"problem": "prove it"}]))
    with pytest.raises(DataError, match=r"rows\.json.*row 2.*no gold answer"):
        problem_rows(script, find_protocol("lab"))
    script.skip_without_answer = True
    assert len(problem_rows(script, find_protocol("lab"))) == 2


def one_right_answer(prompts, completions, **_):
    return [float(row % 8 == 0) for row in range(len(completions))]


def test_the_documented_own_method_runs(tmp_path, monkeypatch):
    import importlib.util
    from pathlib import Path

    path = Path(__file__).resolve().parents[2] / "docs" / "own_method.py"
    spec = importlib.util.spec_from_file_location("own_method", path)
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    rewards = torch.tensor([1.0, 0.0, float("nan"), 1.0, 1.0, 0.0])
    advantages = own.lonely_answers(rewards, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert (advantages != 0).tolist() == [True, True, True, False, False, False]
    write_lab(tmp_path)
    monkeypatch.setattr(own, "contains_answer", one_right_answer)
    trainer = own.make_trainer(
        str(tmp_path / "model"),
        str(tmp_path / "out"),
        max_steps=2,
        max_completion_length=4,
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        disable_tqdm=True,
        learning_rate=1e-3,
    )
    trainer.train()
    assert trainer.state.global_step == 2
