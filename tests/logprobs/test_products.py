"""bfloat16 products with float32 sums: forced here, whatever the processor, against float64 on the rounded factors."""

import pytest
import torch
from logprobs_support import naive_logprobs, tiny_batch, tiny_model

from negpo.logprobs import HeadSpec, model_token_logprobs, streamed_kl, token_logprobs
from negpo.logprobs import products as products_module
from negpo.logprobs.products import Products

BF16 = torch.bfloat16


def example(frozen=False, dtype=torch.float32, vocab=700):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 16, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(vocab, 16, generator=g).to(dtype).requires_grad_(not frozen)
    labels = torch.randint(0, vocab, (3, 7), generator=g)
    return hidden, weight, labels, torch.rand(3, 7, generator=g) > 0.3


def rounded(tensor):
    return tensor.detach().to(BF16).double().requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("settings", [{}, {"softcap": 3.0, "logit_scale": 1.7, "temperature": 0.6}])
def test_values_are_those_of_rounded_factors_and_exact_sums(settings, frozen, entropy):
    hidden, weight, labels, mask = example(frozen)
    exact = rounded(hidden), rounded(weight)
    expected = naive_logprobs(*exact, labels, mask, **settings)
    arguments = {"product_dtype": BF16, "tile_bytes": 4, "return_entropy": entropy, **settings}
    found = token_logprobs(hidden, weight, labels, mask, **arguments)
    found = found if entropy else (found,)
    for ours, theirs in zip(found, expected, strict=False):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1))
    leaves = [(hidden, exact[0])] + ([] if frozen else [(weight, exact[1])])
    ours, theirs = (
        torch.autograd.grad(sum((x * u).sum() for x, u in zip(side, upstream, strict=False)), inputs)
        for side, inputs in zip((found, expected[: len(found)]), zip(*leaves, strict=True), strict=True)
    )
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == torch.float32
        assert (x.double() - y).abs().max() <= 1e-2 * y.abs().max()  # gradient tiles and W[y] are rounded once more


@pytest.mark.parametrize("frozen", [False, True])
def test_bfloat16_models_lose_nothing_in_their_log_probabilities(frozen):
    hidden, weight, labels, mask = example(frozen, BF16)
    expected, _ = naive_logprobs(rounded(hidden), rounded(weight), labels, mask)
    found = token_logprobs(hidden, weight, labels, mask, product_dtype=BF16)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_sure_token_keeps_the_relative_precision_of_its_gradient(frozen):
    """p(y) = 1 - 3e-4: rounding p(y) and 1 apart to bfloat16 would leave an error ten times the gradient."""
    weight = torch.zeros(600, 8, dtype=BF16)
    weight[:, 1], weight[0, 0], weight[0, 1] = -20.0, 4.0, 0.0
    weight[1, 1] = 0.0
    weight.requires_grad_(not frozen)
    hidden = torch.zeros(1, 1, 8, dtype=BF16)
    hidden[..., 0], hidden[..., 1] = 2.0, 1.0
    hidden.requires_grad_()
    labels, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    token_logprobs(hidden, weight, labels, mask, product_dtype=BF16).sum().backward()
    small = 1 - torch.sigmoid(torch.tensor(8.0, dtype=torch.float64)).item()
    assert hidden.grad[0, 0, 0].item() == pytest.approx(4.0 * small, rel=1e-2)
    assert frozen or weight.grad[0, 0].item() == pytest.approx(2.0 * small, rel=1e-2)


def test_kl_of_a_head_with_bfloat16_products_is_that_of_rounded_factors():
    hidden, weight, _, _ = example()
    ref_hidden, ref_weight = (x + 0.3 * torch.randn_like(x) for x in (hidden.detach(), weight.detach()))
    spec = HeadSpec(weight, products=Products.choose(hidden, forced=BF16))
    found = streamed_kl(hidden, spec, ref_hidden, ref_weight)
    sides = [rounded(x) for x in (hidden, weight, ref_hidden, ref_weight)]
    z, r = sides[0] @ sides[1].T, sides[2] @ sides[3].T
    expected = torch.nn.functional.kl_div(z.log_softmax(-1), r.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(found.double(), expected.sum(-1).mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("instructions", [(), ("amx_bf16",)])
def test_half_precision_is_chosen_where_it_is_trained_in_and_fast(monkeypatch, instructions):
    monkeypatch.setattr(products_module, "cpu_multiplies_bf16", lambda: bool(instructions))
    fast = BF16 if instructions else torch.float32
    states = torch.zeros(1, 2)
    assert Products.choose(states).operands == torch.float32
    assert Products.choose(states.to(BF16)).operands == fast
    assert Products.choose(states, trained_in=BF16).operands == fast
    assert Products.choose(states.half()).operands == torch.float32  # no CPU instruction for it
    assert Products.choose(states.double(), trained_in=BF16).operands == torch.float64
    assert Products.choose(states, forced=BF16).operands == BF16


def test_a_model_under_autocast_asks_for_bfloat16_and_gets_what_the_processor_has(monkeypatch):
    seen = []
    choose = Products.choose.__func__
    note = lambda cls, *arguments: seen.append(arguments[1]) or choose(cls, *arguments)
    monkeypatch.setattr(Products, "choose", classmethod(note))
    model, batch = tiny_model(), tiny_batch()
    model_token_logprobs(model, *batch, packing="padded")
    with torch.autocast("cpu", BF16):
        model_token_logprobs(model, *batch, packing="padded")
    assert seen == [None, BF16]


def test_a_models_log_probabilities_with_forced_products_stay_near_those_of_float32():
    model, batch = tiny_model(), tiny_batch()
    exact = model_token_logprobs(model, *batch).logps
    found = model_token_logprobs(model, *batch, product_dtype=BF16).logps
    assert 0 < (found - exact).abs().max() < 0.2


def test_the_setting_for_onednn_is_put_back():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(RuntimeError):
        Products(BF16, torch.float32, "cpu").mm(torch.ones(2, 3), torch.ones(2, 3), out=torch.empty(2, 2))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
