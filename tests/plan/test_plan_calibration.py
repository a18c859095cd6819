"""The plan against what real steps allocate."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from negpo.lab.measured_steps import Point, measure
from negpo.plan.activations import saved_by_final_norm, saved_per_layer
from negpo.plan.live_bytes import LiveBytes
from negpo.plan.memory import memory_of
from negpo.plan.methods import COSTS
from negpo.plan.settings import Settings
from negpo.plan.shapes import shape_of

SIZES = {
    "vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "use_cache": False,
}  # fmt: skip
MODELS: dict[str, Callable] = {
    "llama": lambda layers: LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SIZES)),
    "qwen3": lambda layers: Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=layers, **SIZES)),
}


POINTS = {
    "npo": Point("npo", 128, 2, 64, 4096),
    "nsr": Point("nsr", 128, 2, 64, 4096),
    "npo, checkpointing": Point("npo", 128, 4, 64, 1024, gradient_checkpointing=True),
    "npo, LoRA": Point("npo", 128, 3, 64, 4096, lora_r=8),
}


@pytest.mark.parametrize("name", POINTS)
def test_the_planned_peak_is_within_ten_percent_of_a_real_step(name):
    point = POINTS[name]
    measured = measure(point)
    planned = memory_of(point.shape, point.settings()).peak.total
    assert abs(planned / measured.peak - 1) < 0.10
    assert measured.seconds > 0


def bytes_saved(model: torch.nn.Module, tokens: int) -> int:
    """Of all tensors that autograd keeps in one forward of the decoder, weights excluded, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=torch.arange(tokens).remainder(32).view(2, -1))
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", MODELS)
def test_the_bytes_a_layer_saves_are_those_that_autograd_keeps(family, dtype):
    tokens = 64
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    two, three = (bytes_saved(MODELS[family](layers).to(torch_dtype), tokens) for layers in (2, 3))
    planned = saved_per_layer(shape_of(MODELS[family](1).config, family), Settings(dtype=dtype))
    assert (three - two) / tokens == pytest.approx(planned, rel=1e-6)


def test_what_is_left_beside_the_layers_is_the_final_norm_and_its_output():
    tokens, settings = 64, Settings(dtype="fp32")
    shape = shape_of(MODELS["llama"](1).config, "llama")
    planned = saved_per_layer(shape, settings) + saved_by_final_norm(shape, settings)
    assert bytes_saved(MODELS["llama"](1), tokens) / tokens == pytest.approx(planned, rel=0.05)


def test_a_frozen_base_with_lora_in_float32_saves_what_the_plan_says():
    from peft import LoraConfig, get_peft_model

    def model(layers: int) -> torch.nn.Module:
        wrapped = get_peft_model(MODELS["llama"](layers), LoraConfig(r=8, target_modules="all-linear"))
        return wrapped.get_base_model()

    tokens = 64
    two, three = (bytes_saved(model(layers), tokens) for layers in (2, 3))
    planned = saved_per_layer(shape_of(MODELS["llama"](1).config, "llama"), Settings(dtype="fp32", lora_r=8))
    assert (three - two) / tokens == pytest.approx(planned, rel=0.05)


def test_live_bytes_counts_the_peak_inside_its_window_only():
    with LiveBytes() as live:
        torch.ones(4_000_000).sum()  # before the window, gone again
        kept = torch.ones(1_000_000)
        with live.window():
            doubled = kept + kept
            del doubled
            kept.add_(1)
        torch.ones(4_000_000).sum()
    assert live.peak == pytest.approx(8_000_000, rel=0.01)


def test_live_bytes_sees_gradients_added_in_place():
    """Counting through Python would find three copies here: see the module."""
    weight = torch.randn(10_000, 16, requires_grad=True)
    with LiveBytes() as live, live.window():
        (torch.nn.functional.embedding(torch.arange(4), weight).sum() + weight.sum()).backward()
    assert live.peak < 2.5 * weight.numel() * 4


def test_every_method_of_negpo_train_can_be_planned():
    from negpo.trainers import METHODS

    assert set(COSTS) == set(METHODS)


def test_a_method_costs_what_its_trainer_declares():
    from importlib import import_module

    from negpo.trainers import METHODS

    for method, (module, trainer_name, config_name) in METHODS.items():
        trainer, config = (getattr(import_module(module), name) for name in (trainer_name, config_name))
        cost = COSTS[method]
        if cost.updates:
            assert config.updates_per_rollout == cost.updates, method
        elif hasattr(trainer, "has_reference"):  # preference methods
            assert (cost.reference != "none") == trainer.has_reference, method
        else:
            defaults = config(output_dir="unused", use_cpu=True)
            needs = "model" if trainer.needs_reference_model else "logprobs"
            reads = bool(trainer.reference_parts(None, defaults)) or trainer.needs_reference_model
            assert cost.reference == (needs if reads else "none"), method
            retain = defaults.retain_loss != "none" or trainer.has_own_retain_term
            assert cost.rows == 1 + retain + (method in ("idkdpo", "altpo")), method
