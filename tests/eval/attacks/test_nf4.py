"""NF4 in plain torch against what bitsandbytes stored."""

import itertools

import pytest
import torch

from negpo.eval.attacks.nf4 import NF4, dynamic_code, nf4_codes, round_to_nf4, rounded_scales


@pytest.fixture(scope="module")
def fixture(load_fixture):
    return load_fixture("unlearning2/nf4.json")


def test_the_code_books_are_those_of_bitsandbytes(fixture):
    assert pytest.approx(fixture["code"], abs=1e-9) == NF4
    assert dynamic_code().tolist() == pytest.approx(fixture["code2_dynamic_8bit"], abs=1e-8)


def test_codes_scales_and_values_are_those_of_bitsandbytes(fixture):
    for case in fixture["cases"]:
        x = torch.tensor(case["x"], dtype=torch.float32).view(case["shape"])
        codes, scales = nf4_codes(x)
        stored = [code for byte in case["packed"] for code in (byte >> 4, byte & 15)]
        assert codes.reshape(-1)[: x.numel()].tolist() == stored[: x.numel()], case["name"]
        double = "absmax_codes" in case
        if not double:
            assert scales.tolist() == pytest.approx(case["absmax"], rel=1e-6), case["name"]
        found = round_to_nf4(x, double_quant=double).reshape(-1).tolist()
        expected = torch.tensor(case["dequantised"]).reshape(-1).tolist()
        assert found == pytest.approx(expected, abs=2e-6), case["name"]


def test_rounding_twice_changes_nothing_and_zeros_stay_zero():
    x = torch.randn(7, 33)
    once = round_to_nf4(x)
    assert torch.equal(round_to_nf4(once), once)
    assert torch.equal(round_to_nf4(torch.zeros(3, 100)), torch.zeros(3, 100))
    assert round_to_nf4(x.bfloat16()).dtype == torch.bfloat16


def test_the_error_is_within_half_the_widest_gap_of_its_block():
    x = torch.randn(1000)
    gap = max(b - a for a, b in itertools.pairwise(NF4)) / 2
    blocks = torch.nn.functional.pad(x, (0, -len(x) % 64)).view(-1, 64)
    error = torch.nn.functional.pad(round_to_nf4(x) - x, (0, -len(x) % 64)).view(-1, 64)
    assert (error.abs().amax(1) <= gap * blocks.abs().amax(1) + 1e-6).all()


def test_double_quantised_scales_stay_close():
    scales = torch.rand(700) + 0.5
    assert (rounded_scales(scales) - scales).abs().max() < 0.01


def test_the_attack_rounds_linear_weights_and_no_embeddings():
    from torch import nn

    from negpo.errors import ConfigError
    from negpo.eval.attacks import make_attack
    from negpo.eval.attacks.quantise import quantise_nf4_

    model = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 24, bias=False))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    share = quantise_nf4_(model)
    assert share == pytest.approx(16 * 24 / (16 * 24 + 8 * 16))
    assert torch.equal(model[0].weight, before[0])
    assert torch.equal(model[1].weight, round_to_nf4(before[1]))
    assert make_attack("quantise_nf4").name == "quantise_nf4"
    with pytest.raises(ConfigError, match="scheme=nf4 has 4 bits"):
        make_attack("quantise_nf4", bits=8)
    with pytest.raises(ConfigError, match="double_quant belongs to scheme=nf4"):
        make_attack("quantise_4bit", double_quant=True)
