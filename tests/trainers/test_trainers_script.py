"""Recipes, flags and their mistakes. No model is loaded here."""

import json
import shutil

import pytest
import torch

from negpo.cli.train import TRAINERS, method_help, read_settings
from negpo.configs import CONFIGS
from negpo.errors import ConfigError, DataError
from negpo.methods import of_family
from negpo.trainers._script import build, parse, run_training

UNLEARNING = of_family("unlearn")
ON_ALL_OF_TOFU = ("ga", "graddiff", "npo", "simnpo", "wga", "idkdpo", "rmu", "catnip")
RECIPES = sorted(CONFIGS.glob("recipes/*/*.yaml"))


def published(path):
    """Recipes with settings of papers; those of the lab were tuned here."""
    return path.parent.name in UNLEARNING and not path.stem.startswith("lab")


@pytest.mark.parametrize("path", filter(published, RECIPES), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_becomes_a_config_and_names_its_sources(path, tmp_path):
    script, args = parse(path.parent.name, ["--config", str(path), "--bf16", "false", "--output_dir", str(tmp_path)])
    assert script.model_name_or_path
    assert args.learning_rate <= 1e-4
    text = path.read_text()
    assert text.startswith("#")
    for word in ("Paper: arXiv", "Sources: ", "Expected"):
        assert word in text


def test_methods_with_published_numbers_have_a_recipe_for_each_tofu_split_and_both_models():
    for method in ON_ALL_OF_TOFU:
        for split in ("01", "05", "10"):
            for model in ("", "_llama2_7b"):
                assert (CONFIGS / "recipes" / method / f"tofu_forget{split}{model}.yaml").is_file()


def minimal(tmp_path, **more):
    (tmp_path / "forget.jsonl").write_text(json.dumps({"question": "q", "answer": "a"}) + "\n")
    recipe = {"model_name_or_path": "nowhere", "forget_dataset": str(tmp_path / "forget.jsonl"), "retain_loss": "none"}
    path = tmp_path / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in (recipe | more).items()))
    return path


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(tmp_path):
    recipe = minimal(tmp_path, beta=0.3, learning_rate=2.0e-5)
    _, args = parse("npo", ["--config", str(recipe), "--beta", "0.7", "--output_dir", str(tmp_path)])
    assert (args.beta, args.learning_rate, args.npo_coeff) == (0.7, 2e-5, 1.0)


def test_an_unknown_recipe_key_names_the_file_and_the_nearest_key(tmp_path):
    recipe = minimal(tmp_path, grad_dif_coef=1)
    with pytest.raises(ConfigError, match=r"recipe\.yaml.*'grad_dif_coef'.*did you mean grad_diff_coeff"):
        parse("npo", ["--config", str(recipe)])


def test_an_unknown_flag_names_the_nearest_flag(tmp_path):
    with pytest.raises(ConfigError, match=r"--betta.*did you mean --beta"):
        parse("npo", ["--config", str(minimal(tmp_path)), "--betta", "1"])


def test_an_unknown_method_names_the_nearest_method():
    with pytest.raises(ConfigError, match=r"'graddif'.*did you mean graddiff"):
        parse("graddif", [])


def test_a_value_of_the_wrong_type_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="--beta: invalid float value: 'much'"):
        parse("npo", ["--config", str(minimal(tmp_path)), "--beta", "much"])


def test_a_missing_model_or_data_set_is_named(tmp_path):
    with pytest.raises(ConfigError, match="model_name_or_path is missing"):
        parse("ga", ["--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("npo", ["--beta", "0"], "beta is 0.0; it must be greater than 0"),
        ("npo", ["--pairing", "fix"], "pairing is 'fix'; choose one of random, fixed"),
        ("graddiff", ["--retain_loss", "none"], "without a retain term it is the method ga"),
        ("rmu", ["--retain_loss", "nll"], "own retain term"),
        ("wga", ["--weighting", "satimp", "--beta", "2"], "beta1 and beta2"),
        ("ga", ["--eval_strategy", "steps"], "UtilityFloorCallback"),
        ("ga", ["--trainable_parameters", "layers.(3"], "not a regular expression"),
        ("ga", ["--load_in_4bit", "true"], "needs use_peft"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, method, flags, message):
    base = ["--model_name_or_path", "m", "--forget_dataset", "f", "--output_dir", str(tmp_path)]
    with pytest.raises(ConfigError) as error:
        parse(method, [*base, *flags])
    assert message in str(error.value)


def test_a_bad_row_is_reported_with_its_file_row_and_field(tmp_path):
    from unlearn_tiny import make_tokenizer

    recipe = minimal(tmp_path)
    rows = [{"question": "q", "answer": "a"}, {"question": "q", "answer": " "}]
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    flags = ["--tokenizer_name_or_path", str(tmp_path / "tokenizer"), "--output_dir", str(tmp_path / "out")]
    script, args = parse("npo", ["--config", str(recipe), *flags])
    with pytest.raises(DataError, match=r"forget\.jsonl, row 1, field 'answer': the text is empty"):
        build("npo", script, args)
    assert not (tmp_path / "out").exists()


def test_help_lists_the_settings_of_a_method_without_importing_it():
    text = method_help("simnpo")
    for name in (
        "--gamma (default 0.0)",
        "--grad_diff_coeff (default 1.0)",
        "--forget_dataset",
        "--reference_cache_dir",
    ):
        assert name in text


def test_help_lists_no_setting_that_does_not_exist():
    from dataclasses import fields

    from negpo.trainers._script.parse import classes_of

    for method in UNLEARNING:
        known = {field.name for kind in classes_of(method) for field in fields(kind)}
        for path in (f"{method}.py", "_run/config.py", "_unlearn/config.py"):
            assert {name for name, _, _ in read_settings(TRAINERS / path)} <= known


@pytest.fixture
def checkpoint(tmp_path):
    from unlearn_tiny import make_model, make_tokenizer

    make_model().save_pretrained(tmp_path / "start")
    make_tokenizer().save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def run_npo(tmp_path, checkpoint, *flags):
    from unlearn_tiny import FORGET, RETAIN

    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    settings = {
        "model_name_or_path": checkpoint,
        "forget_dataset": tmp_path / "forget.json",
        "retain_dataset": tmp_path,
        "retain_name": "retain",
        "output_dir": tmp_path / "out",
        "max_steps": 4,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    run_training("npo", [str(part) for key, value in settings.items() for part in (f"--{key}", value)] + list(flags))
    return tmp_path / "out"


def test_a_run_leaves_a_model_its_history_and_its_settings_and_can_be_resumed(tmp_path, checkpoint):
    from safetensors.torch import load_file

    out = run_npo(tmp_path, checkpoint)
    state = json.loads((out / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "forget/log_ratio" in entry] == [1, 2, 3, 4]
    assert json.loads((out / "negpo_train.json").read_text())["config"]["beta"] == 0.1
    first = load_file(out / "model.safetensors")
    shutil.rmtree(out / "checkpoint-4")
    again = load_file(run_npo(tmp_path, checkpoint, "--resume_from_checkpoint", "true") / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_lora_run_saves_an_adapter(tmp_path, checkpoint):
    out = run_npo(tmp_path, checkpoint, "--use_peft", "true", "--lora_r", "2", "--retain_loss", "kl")
    assert (out / "adapter_model.safetensors").is_file()
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
