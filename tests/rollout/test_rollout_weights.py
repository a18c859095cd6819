"""LoRA is folded into new tensors: right numbers, untouched base, and a clear refusal of what is not a plain sum."""

import contextlib
import sys
import types

import pytest
import torch
from rollout_models import build_lora, build_model

from negpo.errors import ConfigError
from negpo.rollout.weights import copy_weights, iter_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_lora_equals_merge_and_unload_and_leaves_the_base_bits_alone(dtype):
    model = build_lora(build_model().to(dtype))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        merged = {name: tensor.clone() for name, tensor in iter_weights(model)}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    expected = dict(model.merge_and_unload().named_parameters())
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == dtype
        # bfloat16: merge_and_unload rounds B A before it adds, we round the sum once.
        tolerance = 1e-6 if dtype == torch.float32 else 2**-7
        assert torch.allclose(tensor, expected[name], atol=tolerance, rtol=tolerance), name


def test_names_are_those_of_the_checkpoint_and_tied_weights_come_once():
    tied, untied = dict(iter_weights(build_model())), dict(iter_weights(build_model(tied=False)))
    assert "lm_head.weight" not in tied
    assert set(untied) - set(tied) == {"lm_head.weight"}
    assert dict(iter_weights(build_lora(build_model()))).keys() == tied.keys()


def test_disabled_adapters_and_already_merged_adapters_are_not_added_again():
    base, model = dict(iter_weights(build_model())), build_lora(build_model())
    merged = {name: tensor.clone() for name, tensor in iter_weights(model)}
    with model.disable_adapter():
        assert all(torch.equal(tensor, base[name]) for name, tensor in iter_weights(model))
    model.merge_adapter()
    assert all(torch.allclose(tensor, merged[name]) for name, tensor in iter_weights(model))


def test_a_fully_trained_module_beside_lora_is_taken_from_its_trained_copy():
    model = build_lora(build_model(tied=False), modules_to_save=["lm_head"])
    trained = model.base_model.model.lm_head.modules_to_save["default"].weight
    trained.data.add_(1.0)
    assert torch.equal(dict(iter_weights(model))["lm_head.weight"], trained)


def test_dora_is_refused():
    model = build_lora(build_model(), use_dora=True)
    with pytest.raises(ConfigError, match=r"self_attn.q_proj: adapter 'default' is a LoRA variant"):
        list(iter_weights(model))


def test_lora_on_a_tied_embedding_is_refused():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build_model(), LoraConfig(target_modules=["embed_tokens"]))
    with pytest.raises(ConfigError, match="tied embedding with LoRA"):
        list(iter_weights(model))


def test_another_architecture_is_refused_by_parameter_name():
    with pytest.raises(ConfigError, match=r"no place for model.layers.2"):
        copy_weights(build_model(layers=3), build_model(layers=2))
    with pytest.raises(ConfigError, match="the trainer has no weights for"):
        copy_weights(build_model(layers=2), build_model(layers=3))


def test_a_partitioned_parameter_is_gathered_before_it_is_read(monkeypatch):
    """ZeRO-3 marks its parameters with `ds_id`; all factors of a LoRA layer must be whole at once."""
    gathered: list[set[int]] = []

    @contextlib.contextmanager
    def gather(parameters):
        gathered.append({id(p) for p in parameters})
        yield

    stub = types.ModuleType("deepspeed")
    stub.zero = types.SimpleNamespace(GatheredParameters=gather)
    monkeypatch.setitem(sys.modules, "deepspeed", stub)
    model = build_lora(build_model())
    monkeypatch.setattr("negpo.rollout.weights.unwrap", lambda _: model.get_base_model())
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.ds_status = number, types.SimpleNamespace(name="NOT_AVAILABLE")
    names = [name for name, _ in iter_weights(model)]
    assert len(gathered) == len(names)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    factors = {id(layer.base_layer.weight), id(layer.lora_A["default"].weight), id(layer.lora_B["default"].weight)}
    assert gathered[names.index("model.layers.0.self_attn.q_proj.weight")] == factors
