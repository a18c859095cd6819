"""Shapes: parameter counts are those of the published checkpoints, wherever the configuration comes from."""

import json

import pytest

from negpo.errors import ConfigError
from negpo.plan.shapes import PUBLISHED, load_shape, published_names, shape_of

CHECKPOINTS = {  # parameters that the hub counts in the published weights
    "Llama-2-7B": 6_738_415_616,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
}


def test_every_published_shape_is_checked_here():
    assert set(published_names()) == set(CHECKPOINTS)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_shape_has_as_many_parameters_as_its_checkpoint(name):
    shape = load_shape(name)
    assert shape.parameters == CHECKPOINTS[name]
    assert shape.parameters == shape.embedding + shape.head + shape.layers * shape.layer + shape.rest


def test_a_hub_name_with_organisation_and_instruct_suffix_needs_no_hub():
    assert load_shape("Qwen/Qwen2.5-0.5B-Instruct").parameters == CHECKPOINTS["Qwen2.5-0.5B"]


def test_folder_and_file_give_the_shape_of_the_config_in_them(tmp_path):
    (tmp_path / "config.json").write_text((PUBLISHED / "Llama-3.2-1B.json").read_text())
    for source in (tmp_path, tmp_path / "config.json"):
        shape = load_shape(str(source))
        assert (shape.hidden, shape.layers, shape.tied) == (2048, 16, True)


def test_widths_follow_the_head_dimension_of_the_config_not_the_hidden_size():
    shape = load_shape("Qwen3-4B")
    assert (shape.hidden, shape.query, shape.key_value, shape.query_norm) == (2560, 4096, 1024, True)
    assert load_shape("Llama-3.1-8B").query_norm is False


def test_lora_adds_what_peft_adds():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=3, target_modules="all-linear"))
    shape = shape_of(config, "tiny")
    assert 3 * shape.lora_width * shape.layers == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_mixture_of_experts_is_refused_by_name(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen3_moe", "num_experts": 8, "num_hidden_layers": 1}))
    with pytest.raises(ConfigError, match=r"mixture of experts \(num_experts=8\)"):
        load_shape(str(path))


def test_an_architecture_without_gated_layers_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match="intermediate_size"):
        load_shape(str(path))


def test_an_unknown_name_lists_what_is_known_without_the_hub():
    with pytest.raises(ConfigError, match=r"no configuration for 'nobody/nothing'.*Llama-3\.1-8B"):
        load_shape("nobody/nothing")


def test_a_file_that_is_no_config_is_named(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text("[1]")
    with pytest.raises(ConfigError, match=r"weights\.json is not the config\.json"):
        load_shape(str(path))
