"""Operations against rules of thumb and torch's own counter; time from utilisation."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from negpo.plan.flops import operations, speed
from negpo.plan.settings import Settings
from negpo.plan.shapes import load_shape, shape_of


@pytest.fixture(scope="module")
def llama():
    return load_shape("Llama-3.1-8B")


def test_a_forward_of_a_short_row_is_two_operations_per_parameter_and_token(llama):
    settings = Settings(method="sft", sequence_length=128)
    per_token = operations(llama, settings).forward / settings.tokens
    assert per_token == pytest.approx(2 * (llama.parameters - llama.embedding), rel=0.02)


def test_the_forward_is_what_torch_counts():
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    rows, length = 2, 64
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        LlamaForCausalLM(config)(input_ids=torch.zeros(rows, length, dtype=torch.long))
    settings = Settings(method="sft", micro_batch=rows, sequence_length=length)
    shape = shape_of(config, "tiny")
    masked_half = (
        2 * settings.tokens * length * shape.query * shape.layers
    )  # eager attention computes it, kernels do not
    unscored = rows * 2 * shape.head_matrix  # the last token of a row has no label
    planned = operations(shape, settings).forward + masked_half + unscored
    assert counter.get_total_flops() == pytest.approx(planned, rel=0.005)


def test_attention_grows_with_the_square_of_the_sequence(llama):
    def attention(length):
        settings = Settings(method="sft", sequence_length=length, answer_share=1e-6)
        return operations(llama, settings).forward - 2 * settings.tokens * llama.layers * llama.layer_matrices

    assert attention(8192) / attention(4096) == pytest.approx(4, rel=0.01)


def test_lora_saves_the_weight_gradients_and_checkpointing_costs_a_forward(llama):
    full = operations(llama, Settings(method="sft", sequence_length=512))
    lora = operations(llama, Settings(method="sft", sequence_length=512, lora_r=8))
    again = operations(llama, Settings(method="sft", sequence_length=512, gradient_checkpointing=True))
    assert full.backward / full.forward == pytest.approx(2, rel=0.05)
    assert lora.backward / full.backward == pytest.approx(0.5, rel=0.1)
    assert again.training - full.training == again.recomputation > 0.85 * full.forward


def test_a_cached_reference_saves_one_forward_per_step(llama):
    cached = operations(llama, Settings(method="npo"))
    online = operations(llama, Settings(method="npo", reference="model"))
    assert cached.reference == 0
    assert online.training - cached.training == cached.forward


def test_tokens_per_second_follow_from_utilisation_and_devices(llama):
    settings = Settings(method="sft", strategy="zero3", devices=8, flops=1e15, utilisation=0.4)
    result = speed(llama, settings)
    assert result.training_seconds == pytest.approx(operations(llama, settings).training / 4e14)
    assert result.tokens_per_second == pytest.approx(8 * settings.tokens / result.training_seconds)
    assert speed(llama, replace(settings, utilisation=0.2)).step_seconds == pytest.approx(2 * result.step_seconds)


def test_decoding_is_bound_by_reading_weights_and_cache(llama):
    settings = Settings(method="nsr", micro_batch=8, sequence_length=3072, max_new_tokens=2048, engine="vllm")
    cache = 128 * 1024 * 32 * (3072 - 1024)  # 32 rows, on average with half of their completion
    reading = 2048 * (2 * llama.parameters + cache) / settings.bandwidth
    assert speed(llama, settings).rollout_seconds == pytest.approx(reading / 4, rel=1e-6)  # four updates share it


def test_methods_on_stored_rows_have_no_rollouts(llama):
    assert (
        speed(llama, Settings(method="redi")).rollout_seconds
        == operations(llama, Settings(method="redi")).rollouts
        == 0
    )
