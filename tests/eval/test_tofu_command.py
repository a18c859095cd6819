"""``negpo eval tofu`` as a user meets it: what is refused before loading, and what is left in the folder."""

import argparse
import json
import subprocess
import sys
from shutil import copytree

import pytest
from transformers import AutoTokenizer

from negpo.cli.eval_tofu import add_tofu_parser, run_tofu
from negpo.errors import ConfigError


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_tofu_parser(parser.add_subparsers())
    return parser.parse_args(["tofu", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoints(make_model, tiny_tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("unlearned", "target", "retain")):
        make_model(seed).save_pretrained(root / name)
        tiny_tokenizer.save_pretrained(root / name)
    return root


def test_without_a_retain_side_nothing_is_loaded(tmp_path):
    args = parse("--model", "nobody/nothing", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="--retain-log FILE or --retain-model NAME"):
        run_tofu(args)
    assert not (tmp_path / "out").exists()


def test_equal_weights_are_refused_before_the_data_is_read(checkpoints, tmp_path):
    target = checkpoints / "target"
    args = parse("--model", target, "--target", target, "--retain-model", "r", "--data", "nowhere", "--out", tmp_path)
    with pytest.raises(ConfigError, match="nothing was unlearned"):
        run_tofu(args)


def test_a_retain_model_is_measured_first_and_its_log_serves_again(checkpoints, tofu_folder, tmp_path, capsys):
    common = ["--model", checkpoints / "unlearned", "--target", checkpoints / "target", "--data", tofu_folder]
    common += ["--max-new-tokens", 4]
    assert run_tofu(parse(*common, "--retain-model", checkpoints / "retain", "--out", tmp_path / "a")) == 0
    shown = capsys.readouterr().out
    assert "forget_quality" in shown
    assert "log10 p" in shown
    log = tmp_path / "a" / "retain_log.json"
    assert run_tofu(parse(*common, "--retain-log", log, "--out", tmp_path / "b")) == 0
    summaries = [json.loads((tmp_path / out / "summary.json").read_text()) for out in "ab"]
    assert summaries[0]["metrics"] == pytest.approx(summaries[1]["metrics"], rel=1e-6)
    assert summaries[0]["metrics"].keys() >= {"forget_quality", "model_utility", "privleak"}
    assert summaries[1]["details"]["privleak"]["retain_auc_measured"]


def test_the_retain_model_itself_leaves_a_log(checkpoints, tofu_folder, tmp_path):
    common = ["--model", checkpoints / "retain", "--data", tofu_folder, "--no-generate", "--out", tmp_path / "r"]
    assert run_tofu(parse(*common, "--is-retain")) == 0
    assert json.loads((tmp_path / "r" / "retain_log.json").read_text())["forget"] == "forget10"


def test_a_tokenizer_of_another_model_is_refused(checkpoints, tofu_folder, tmp_path):
    other = tmp_path / "other"
    args = parse("--model", other, "--data", tofu_folder, "--is-retain", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="could not be loaded"):
        run_tofu(args)
    copytree(checkpoints / "retain", other)
    larger = AutoTokenizer.from_pretrained(other)
    larger.add_tokens([f"<new {i}>" for i in range(9)] + ["forget book"])
    larger.save_pretrained(other)
    with pytest.raises(ConfigError, match="they do not fit"):
        run_tofu(args)


def test_a_model_folder_without_its_tokenizer_is_refused(checkpoints, tofu_folder, tmp_path):
    """Every text would become nothing, and forget quality a number about nothing."""
    bare = copytree(checkpoints / "retain", tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    args = parse("--model", bare, "--data", tofu_folder, "--is-retain", "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="turns text into nothing"):
        run_tofu(args)
    assert not (tmp_path / "out").exists()


def test_building_the_parser_imports_nothing_heavy():
    code = (
        "import argparse, sys; from negpo.cli.eval_tofu import add_tofu_parser;"
        "add_tofu_parser(argparse.ArgumentParser().add_subparsers());"
        "sys.exit(bool({'torch', 'numpy', 'rich', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
