"""Run by test_row_logprobs.py in a process where Triton interprets (or on a GPU); not collected on its own."""

import itertools

import pytest
import torch
from logprobs_support import naive_logprobs

from negpo.logprobs import row_plan, rows, token_logprobs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS = {
    "plain": {},
    "scaled": {"logit_scale": 0.25, "temperature": 0.7},
    "softcapped": {"softcap": 3.0, "logit_scale": 1.7, "temperature": 0.6},
}
PLANS = ("keep", "recompute", "direct")


@pytest.fixture(autouse=True)
def blocks_of_three(monkeypatch):
    """Small blocks, so that every loop runs more than once."""
    monkeypatch.setattr(row_plan, "MIN_ROWS", 3)
    monkeypatch.setattr("negpo.logprobs.kernels.BLOCK", 64)


@pytest.fixture
def plan(request, monkeypatch):
    """Forces a plan; the budget gives three rows at a time."""
    one = {"keep": row_plan._keep, "direct": row_plan._direct, "recompute": row_plan._recompute}[request.param]
    choose = lambda problem, _: one(problem, 0, 0) if request.param == "keep" else one(problem, 0)
    monkeypatch.setattr(rows, "choose_plan", choose)
    return request.param


def example(dtype=torch.float32, vocab=150, frozen=False, bias=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g).to(DEVICE, dtype)
    hidden, weight = draw(2, 6, 8).requires_grad_(), draw(vocab, 8).requires_grad_(not frozen)
    offset = draw(vocab).requires_grad_(not frozen) if bias else None
    labels = torch.randint(0, vocab, (2, 6), generator=g)
    mask = torch.rand(2, 6, generator=g) > 0.3
    labels[~mask] = -100
    return hidden, weight, offset, labels.to(DEVICE), mask.to(DEVICE)


def compare(inputs, labels, mask, entropy, settings, rounding, **arguments):
    """Values and gradients of both outputs against float64 on full logits, as a share of the largest entry."""
    hidden, weight, offset = inputs
    exact = [None if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    expected = naive_logprobs(exact[0], exact[1], labels, mask, bias=exact[2], **settings)
    found = token_logprobs(
        hidden, weight, labels, mask, bias=offset, return_entropy=entropy, backend="triton", **settings, **arguments
    )
    found = found if entropy else (found,)
    upstream = torch.randn(2, *labels.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    upstream[:, 0, 1] = 0.0  # a token without a gradient
    ours = theirs = 0.0
    for x, y, u in zip(found, expected, upstream, strict=False):
        assert x.dtype == torch.float32
        assert (x[~mask] == 0).all()
        torch.testing.assert_close(x.double(), y, rtol=rounding[0], atol=rounding[0])
        ours, theirs = ours + (x * u).sum(), theirs + (y * u).sum()
    wanted = [(x, y) for x, y in zip(inputs, exact, strict=True) if x is not None and x.requires_grad]
    grads = [
        torch.autograd.grad(loss, side) for loss, side in zip((ours, theirs), zip(*wanted, strict=True), strict=True)
    ]
    for x, y, (leaf, _) in zip(*grads, wanted, strict=True):
        assert x.dtype == leaf.dtype
        assert x.shape == leaf.shape
        assert (x.double() - y).abs().max() <= rounding[1] * y.abs().max()


@pytest.mark.parametrize(("head", "bias", "entropy"), [*itertools.product(HEADS, (False, True), (False, True))])
@pytest.mark.parametrize("plan", PLANS, indirect=True)
def test_values_and_gradients_equal_full_logits_in_float64(plan, head, bias, entropy):
    *inputs, labels, mask = example(frozen=plan == "direct", bias=bias)
    compare(inputs, labels, mask, entropy, HEADS[head], (2e-5, 2e-5))


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("plan", PLANS, indirect=True)
def test_bfloat16_rounds_factors_and_nothing_else(plan, entropy):
    """A bfloat16 model's logits are exact, so values are; gradients carry one rounding of 2^-9 per factor."""
    *inputs, labels, mask = example(dtype=torch.bfloat16, frozen=plan == "direct", bias=True)
    compare(inputs, labels, mask, entropy, {}, (2e-5, 2e-2), product_dtype=torch.bfloat16)


@pytest.mark.parametrize("plan", PLANS, indirect=True)
def test_a_float32_head_trained_in_bfloat16_keeps_float32_gradients(plan):
    *inputs, labels, mask = example(frozen=plan == "direct")
    compare(inputs, labels, mask, False, {}, (5e-2, 3e-2), product_dtype=torch.bfloat16)


@pytest.mark.parametrize("plan", PLANS, indirect=True)
def test_a_second_backward_over_the_same_graph_gives_the_same_gradients(plan):
    hidden, weight, _, labels, mask = example(frozen=plan == "direct")
    found = token_logprobs(hidden, weight, labels, mask, backend="triton").sum()
    grads = [torch.autograd.grad(found, hidden, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("plan", PLANS, indirect=True)
def test_nan_in_one_scored_token_stays_in_that_token(plan):
    hidden, weight, _, labels, mask = example(frozen=True)
    first = tuple(mask.nonzero()[0].tolist())
    broken = hidden.detach().clone()
    broken[first] = float("nan")
    found = token_logprobs(broken.requires_grad_(), weight, labels, mask, backend="triton")
    assert found[first].isnan()
    assert found.isnan().sum() == 1


@pytest.mark.parametrize("plan", ["keep", "recompute"], indirect=True)
def test_a_sure_token_keeps_the_relative_precision_of_its_gradient(plan):
    """p(y) = 1 - 4e-4: rounding p(y) and 1 apart to bfloat16 would leave an error ten times the gradient."""
    weight = torch.zeros(2, 8, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    hidden = torch.zeros(1, 1, 8, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        weight[0, 0], weight[1, 1], hidden[..., 0] = 4.0, 1.0, 2.0
    hidden.requires_grad_()
    labels, mask = torch.zeros(1, 1, dtype=torch.long, device=DEVICE), torch.ones(1, 1, dtype=torch.bool, device=DEVICE)
    token_logprobs(hidden, weight, labels, mask, backend="triton", product_dtype=torch.bfloat16).sum().backward()
    small = 1 - torch.sigmoid(torch.tensor(8.0, dtype=torch.float64)).item()
    assert hidden.grad[0, 0, 0].item() == pytest.approx(4.0 * small, rel=1e-2)
    assert weight.grad[0, 0].item() == pytest.approx(2.0 * small, rel=1e-2)


def test_no_grad_and_an_empty_mask_give_what_the_tiles_give():
    hidden, weight, _, labels, mask = example()
    with torch.no_grad():
        found = token_logprobs(hidden, weight, labels, mask, return_entropy=True, backend="triton")
    torch.testing.assert_close(
        found, token_logprobs(hidden, weight, labels, mask, return_entropy=True, backend="torch")
    )
    nothing = token_logprobs(hidden, weight, labels, mask & False, backend="triton")
    nothing.sum().backward()
    assert not nothing.any()
    assert not hidden.grad.any()


def compile_kernels(capability):
    """PTX of every variant of both kernels for an NVIDIA architecture (90: Hopper), without one being present."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from negpo.logprobs import kernels

    target, texts = GPUTarget("cuda", capability, 32), []
    pointers = {"labels_ptr": "*i64", "slopes_ptr": "*bf16", "out_ptr": "*bf16", "bias_ptr": "*bf16"}
    scalars = {"vocab": "i32", "inner": "fp32", "outer": "fp32"}
    strides = dict.fromkeys(("u_stride", "slopes_stride", "out_stride"), "i64")
    for kernel in (kernels._softmax_rows, kernels._gradient_rows):
        names = kernel.arg_names
        flags = [name for name in names if name.isupper() and name != "SIZE"]
        known = pointers | scalars | strides
        signature = {name: "constexpr" if name.isupper() else known.get(name, "*fp32") for name in names}
        for values in itertools.product((False, True), repeat=len(flags)):
            constants = {**dict(zip(flags, values, strict=True)), "SIZE": kernels.BLOCK}
            source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
            done = compile(source, target=target, options={"num_warps": kernels.WARPS})
            assert "cubin" in done.asm
            texts.append(done.asm["ptx"])
    return texts
