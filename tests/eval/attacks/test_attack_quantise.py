"""Simulated quantisation: the grid, its groups, and which weights are rounded."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from negpo.errors import ConfigError
from negpo.eval.attacks.quantise import quantise_, round_to_nearest
from negpo.models import hash_model


def test_rounding_agrees_with_a_row_worked_out_by_hand():
    weight = torch.tensor([[0.7, -0.34, 0.06, 0.0]])
    # three bits: levels -3 … 3, step 0.7 / 3
    step = 0.7 / 3
    assert torch.allclose(round_to_nearest(weight, 3, None), torch.tensor([[3.0, -1.0, 0.0, 0.0]]) * step)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    group=st.one_of(st.none(), st.integers(1, 9)),
    columns=st.integers(1, 20),
    seed=st.integers(),
)
def test_every_group_has_its_own_scale_and_errs_by_half_a_step_at_most(bits, group, columns, seed):
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed % 2**31))
    rounded = round_to_nearest(weight, bits, group)
    levels = 2 ** (bits - 1) - 1
    for start in range(0, columns, group or columns):
        part, result = (w[:, start : start + (group or columns)] for w in (weight, rounded))
        step = part.abs().amax(1, keepdim=True) / levels
        assert ((part - result).abs() <= step / 2 * (1 + 1e-5)).all()
        assert torch.allclose(result / step, (result / step).round(), atol=1e-4)


def test_zeros_stay_zero_and_the_dtype_stays():
    weight = torch.zeros(2, 6, dtype=torch.bfloat16)
    assert round_to_nearest(weight, 4, 4).dtype == torch.bfloat16
    assert torch.equal(round_to_nearest(weight, 4, 4), weight)


def test_a_change_below_half_a_step_is_undone():
    """The attack's reason: unlearning that moves weights by less than the grid's step leaves no trace after it."""
    target = round_to_nearest(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), 4, None)
    step = target.abs().amax(1, keepdim=True) / 7
    inner = target.abs() < target.abs().amax(1, keepdim=True)  # the largest weight sets the scale
    unlearned = target + 0.4 * step * inner
    assert torch.allclose(round_to_nearest(unlearned, 4, None), target, atol=1e-6)


def test_linear_weights_are_rounded_and_embeddings_head_and_norms_are_not(make_model):
    model, before = make_model(0), make_model(0)
    share = quantise_(model, 4, 8)
    same = {name for name, value in before.state_dict().items() if torch.equal(value, model.state_dict()[name])}
    assert {name for name in same if name.endswith("weight")} == {
        name for name in before.state_dict() if "norm" in name or "embed" in name or "lm_head" in name
    }
    assert all(name in same for name in before.state_dict() if name.endswith("bias"))
    rounded = sum(value.numel() for name, value in before.named_parameters() if name not in same)
    assert share == pytest.approx(rounded / sum(value.numel() for value in before.parameters()))


def test_the_head_is_rounded_on_request(make_model):
    model, before = make_model(0), make_model(0)
    quantise_(model, 2, None, head=True)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


def test_transposed_weights_are_rounded_per_output_channel():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer = Conv1D(3, 10)  # weight (in = 10, out = 3)
    expected = round_to_nearest(layer.weight.detach().t().clone(), 4, 4).t()
    quantise_(nn.ModuleList([layer]), 4, 4)
    assert torch.equal(layer.weight, expected)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ConfigError, match="no linear layer"):
        quantise_(nn.ModuleList([nn.Embedding(3, 4)]), 8, None)


def test_the_result_shows_each_item_before_and_after(ran):
    result = ran("quantise_4bit")
    assert {"rougeL_recall", "answer_probability", "generation"} == result.per_item[0]["before"].keys()
    assert "rounded" in result.notes[0]


def test_adapters_are_merged_into_the_copy_that_is_rounded_and_left_alone_in_the_callers_model(run, make_model):
    """Who holds the weights quantises what the model computes, not base and adapter apart."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(make_model(0), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    before = hash_model(adapted)
    merged = copy.deepcopy(adapted).merge_and_unload()
    result, expected = run("quantise_8bit", adapted), run("quantise_8bit", merged)
    assert hash_model(adapted) == before
    assert result.measures["answer_probability"] == pytest.approx(expected.measures["answer_probability"], rel=1e-4)
