"""Model, quantisation and adapter settings from TRL's ModelConfig, settings of one method, the record of a run."""

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from negpo.cli.train import method_help
from negpo.errors import ConfigError, DataError, TrainingStopped
from negpo.trainers._script import parse, run, run_training

BASE = {
    "ga": ["--model_name_or_path", "m", "--forget_dataset", "f", "--use_cpu", "true"],
    "sft": ["--model_name_or_path", "m", "--dataset", "d", "--use_cpu", "true"],
    "nsr": ["--model_name_or_path", "m", "--dataset", "d", "--use_cpu", "true", "--per_device_train_batch_size", "8"],
}


def arguments(method, *flags):
    return parse(method, [*BASE[method], *flags])[0]


# ---- adapters and quantisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BASE)
def test_every_family_knows_the_adapters_of_trl(method):
    script = arguments(
        method, "--use_peft", "true", "--use_rslora", "true", "--use_dora", "true", "--lora_r", "4",
        "--lora_modules_to_save", "lm_head", "--lora_target_modules", "q_proj", "v_proj",
    )  # fmt: skip
    config = script.peft_config()
    assert (config.r, config.use_rslora, config.use_dora, config.lora_dropout) == (4, True, True, 0.0)
    assert (config.modules_to_save, set(config.target_modules)) == (["lm_head"], {"q_proj", "v_proj"})
    assert arguments(method).peft_config() is None


def test_an_adapter_is_put_on_all_linear_layers_unless_told_otherwise():
    assert arguments("ga", "--use_peft", "true").peft_config().target_modules == "all-linear"
    parameters = arguments("ga", "--use_peft", "true", "--lora_target_parameters", "mlp.experts").peft_config()
    assert (parameters.target_modules, parameters.target_parameters) == (None, ["mlp.experts"])


@pytest.fixture
def bitsandbytes(monkeypatch):
    """As if it were installed; what is loaded with it is not tested here."""
    find, version = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: object() if n == "bitsandbytes" else find(n))
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "0.49.0" if n == "bitsandbytes" else version(n))


@pytest.mark.parametrize("method", BASE)
def test_every_family_loads_in_eight_or_four_bits(method, bitsandbytes):
    eight = arguments(method, "--use_peft", "true", "--load_in_8bit", "true").init_kwargs()["quantization_config"]
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)
    flags = ("--use_peft", "true", "--load_in_4bit", "true", "--use_bnb_nested_quant", "true")
    four = arguments(method, *flags, "--bnb_4bit_quant_type", "fp4").init_kwargs()["quantization_config"]
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("fp4", True)
    assert "quantization_config" not in arguments(method).init_kwargs()


@pytest.mark.parametrize(("dtype", "compute"), [("auto", "bfloat16"), ("float32", "bfloat16"), ("float16", "float16")])
def test_four_bit_weights_are_multiplied_in_half_precision_whatever_is_trained(dtype, compute, bitsandbytes):
    script = arguments("ga", "--use_peft", "true", "--load_in_4bit", "true", "--dtype", dtype)
    assert script.init_kwargs()["quantization_config"].bnb_4bit_compute_dtype == getattr(torch, compute)
    assert script.init_kwargs()["dtype"] == dtype


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--load_in_4bit", "true"), "load_in_4bit needs use_peft"),
        (("--load_in_8bit", "true"), "load_in_8bit needs use_peft"),
        (("--load_in_4bit", "true", "--load_in_8bit", "true"), "exclude each other"),
        (("--lora_r", "4"), "lora_r=4 has no effect without use_peft=true"),
        (("--use_dora", "true"), "use_dora=True has no effect without use_peft=true"),
        (("--lora_modules_to_save", "lm_head"), "lora_modules_to_save=.* has no effect without use_peft=true"),
        (("--use_peft", "true", "--bnb_4bit_quant_type", "fp4"), "bnb_4bit_quant_type=fp4 has no effect without load"),
        (("--model_revision", "v2"), "model_revision=v2 is not honoured"),
        (("--use_peft", "true", "--lora_task_type", "SEQ_CLS"), "lora_task_type=SEQ_CLS is no language model"),
        (("--dtype", "float8"), "invalid choice: 'float8'"),
    ],
)
@pytest.mark.parametrize("method", BASE)
def test_settings_of_trl_that_nothing_would_read_are_refused_by_name(method, flags, message):
    with pytest.raises(ConfigError, match=message):
        arguments(method, *flags)


def test_eight_bits_without_bitsandbytes_say_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "bitsandbytes" else find(n))
    with pytest.raises(ConfigError, match=r"pip install 'negpo\[quantization\]'"):
        arguments("ga", "--use_peft", "true", "--load_in_8bit", "true")


def test_help_lists_the_adapter_settings_once_with_the_defaults_that_hold():
    lines = method_help("ga").splitlines()
    for line in ("  --lora_r (default 16)", "  --use_dora (default False)", "  --lora_dropout (default 0.0)"):
        assert lines.count(line) == 1
    assert not any(line.startswith("  --lora_dropout") and "0.05" in line for line in lines)


# ---- settings of one method ------------------------------------------------------------------------------------------


def test_a_setting_of_another_method_is_refused_with_the_methods_that_have_it(tmp_path):
    with pytest.raises(ConfigError, match="idk_file=x belongs to idkdpo; ga has no such setting"):
        arguments("ga", "--idk_file", "x")
    (tmp_path / "recipe.yaml").write_text("sample_ref_model_name_or_path: m\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: sample_ref_model_name_or_path=m belongs to d2o; sft has no"):
        arguments("sft", "--config", str(tmp_path / "recipe.yaml"))


def test_idk_answers_are_missed_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="idk_file is missing"):
        parse("idkdpo", BASE["ga"])


def test_a_bad_idk_answer_names_its_file(tmp_path):
    from unlearn_tiny import FORGET, make_tokenizer

    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "forget.json").write_text(json.dumps(FORGET))
    (tmp_path / "idk.json").write_text(json.dumps([{"idk": "No idea."}, {"idk": " "}]))
    script, args = parse("idkdpo", [
        "--model_name_or_path", "m", "--tokenizer_name_or_path", str(tmp_path / "tokenizer"), "--retain_loss", "none",
        "--forget_dataset", str(tmp_path / "forget.json"), "--idk_file", str(tmp_path / "idk.json"),
        "--use_cpu", "true", "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    with pytest.raises(DataError, match=r"idk\.json, row 1"):
        run.build("idkdpo", script, args)


# ---- the record of a run ---------------------------------------------------------------------------------------------


class Trainer:
    """Stands for a trained model; ``broken`` breaks off the training."""

    def __init__(self, broken=None):
        self.broken, self.did = broken, []
        self.state = SimpleNamespace(save_to_json=lambda path: Path(path).write_text("{}"))

    def train(self, resume_from_checkpoint):
        self.did.append(("train", resume_from_checkpoint))
        if self.broken:
            raise self.broken

    def close(self):
        self.did.append("close")

    def save_model(self):
        self.did.append("save")

    def is_world_process_zero(self):
        return True

    def remarks(self):
        return {"data": ["1 row lost"]}


@pytest.fixture
def trainer(monkeypatch):
    stand_in = Trainer()
    monkeypatch.setattr(run, "build", lambda method, script, args: stand_in)
    return stand_in


def test_the_record_of_a_run_is_written_last_and_holds_what_repeats_it(tmp_path, trainer):
    argv = [*BASE["sft"], "--output_dir", str(tmp_path), "--resume_from_checkpoint", "true"]
    run_training("sft", argv)
    assert trainer.did == [("train", True), "close", "save"]
    record = json.loads((tmp_path / "negpo_train.json").read_text())
    assert (record["method"], record["arguments"], record["processes"]) == ("sft", argv, 1)
    assert (record["script"]["dataset"], record["data"]) == ("d", ["1 row lost"])


@pytest.mark.parametrize("method", BASE)
def test_a_record_that_could_not_be_written_whole_does_not_exist(method, tmp_path, trainer, monkeypatch):
    def torn(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", torn)
    with pytest.raises(DataError, match="No space left"):
        run_training(method, [*BASE[method], "--output_dir", str(tmp_path)])
    assert not (tmp_path / "negpo_train.json").exists()


def test_what_a_run_holds_is_let_go_of_when_it_breaks_off(tmp_path, trainer):
    trainer.broken = TrainingStopped("no")
    with pytest.raises(TrainingStopped):
        run_training("nsr", [*BASE["nsr"], "--output_dir", str(tmp_path)])
    assert trainer.did == [("train", None), "close"]
    assert not (tmp_path / "negpo_train.json").exists()


def test_a_run_with_dora_rslora_and_a_saved_head_trains_what_it_says(tmp_path):
    from safetensors.torch import load_file
    from unlearn_tiny import FORGET, make_model, make_tokenizer

    make_model(tie_word_embeddings=False).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "forget.json").write_text(json.dumps(FORGET))
    run_training("npo", [
        "--model_name_or_path", str(tmp_path / "model"), "--forget_dataset", str(tmp_path / "forget.json"),
        "--retain_loss", "none", "--use_peft", "true", "--use_dora", "true", "--use_rslora", "true", "--lora_r", "2",
        "--lora_modules_to_save", "lm_head", "--max_steps", "2", "--learning_rate", "1e-2", "--use_cpu", "true",
        "--output_dir", str(tmp_path / "out"), "--disable_tqdm", "true", "--report_to", "none",
    ])  # fmt: skip
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"], config["modules_to_save"]) == (True, True, ["lm_head"])
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in saved)
    head = next(value for name, value in saved.items() if name.endswith("lm_head.weight"))
    assert not torch.equal(head, load_file(tmp_path / "model" / "model.safetensors")["lm_head.weight"])
