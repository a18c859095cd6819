"""The tiled primitive against full logits: values, gradients, masks, memory, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logprobs_support import naive_logprobs
from torch.utils._python_dispatch import TorchDispatchMode

from negpo.logprobs import token_logprobs

HEADS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "scaled": {"logit_scale": 0.25, "temperature": 1.5},
    "softcapped": {"softcap": 2.0},
    "everything": {"softcap": 3.0, "logit_scale": 1.7, "temperature": 0.6},
}


def example(dtype=torch.float64, vocab=700, hidden_size=9, frozen=False, bias=False, seed=0):
    """hidden (3, 7, H), weight (V, H), bias, labels with -100 and nonsense under the mask, mask."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 7, hidden_size, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden_size, generator=g).to(dtype).requires_grad_(not frozen)
    offset = torch.randn(vocab, generator=g).to(dtype).requires_grad_(not frozen) if bias else None
    labels = torch.randint(0, vocab, (3, 7), generator=g)
    mask = torch.rand(3, 7, generator=g) > 0.4
    labels[~mask] = torch.where(torch.rand(int((~mask).sum()), generator=g) > 0.5, -100, 10**9)
    return hidden, weight, offset, labels, mask


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_values_and_gradients_equal_full_logits(head, bias, frozen, entropy):
    hidden, weight, offset, labels, mask = example(frozen=frozen, bias=bias)
    inputs = [tensor for tensor in (hidden, weight, offset) if tensor is not None and tensor.requires_grad]
    upstream = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = naive_logprobs(hidden, weight, labels, mask, bias=offset, **HEADS[head])
    found = token_logprobs(
        hidden, weight, labels, mask, bias=offset, return_entropy=entropy, tile_bytes=4, **HEADS[head]
    )
    found = found if entropy else (found,)
    pairs = list(zip(found, expected, strict=False))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(sum((x * u).sum() for (x, _), u in zip(pairs, upstream, strict=False)), inputs)
    theirs = torch.autograd.grad(sum((y * u).sum() for (_, y), u in zip(pairs, upstream, strict=False)), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradcheck_in_float64_with_entropy(frozen):
    hidden, weight, offset, labels, mask = example(vocab=11, hidden_size=3, frozen=frozen, bias=True)

    def run(*tensors):
        states, rows = tensors[0], (weight if frozen else tensors[1])
        shift = offset if frozen else tensors[2]
        return token_logprobs(states, rows, labels, mask, bias=shift, softcap=2.0, return_entropy=True)

    assert torch.autograd.gradcheck(run, (hidden,) if frozen else (hidden, weight, offset))


@settings(max_examples=40, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=21, max_size=21),
    vocab=st.integers(1, 600),
    tile_bytes=st.sampled_from([1, 3000, 10**6]),
)
def test_any_mask_and_any_tile_give_the_same_numbers(mask, vocab, tile_bytes):
    hidden, weight, _, labels, _ = example(vocab=vocab)
    mask = torch.tensor(mask).view(3, 7)
    labels = labels.clamp(0, vocab - 1)
    expected, _ = naive_logprobs(hidden, weight, labels, mask)
    found = token_logprobs(hidden, weight, labels, mask, tile_bytes=tile_bytes)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert (found[~mask] == 0).all()
    grads = [torch.autograd.grad(x.square().sum(), (hidden, weight)) for x in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("frozen", [False, True])
def test_low_precision_inputs_are_summed_in_float32(dtype, frozen):
    hidden, weight, _, labels, mask = example(dtype=dtype, frozen=frozen)
    # products of rounded factors, the default where a processor is fast at them, are in test_products.py
    found = token_logprobs(hidden, weight, labels, mask, tile_bytes=4, product_dtype=torch.float32)
    assert found.dtype == torch.float32
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    expected, _ = naive_logprobs(exact_hidden, exact_weight, labels, mask)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    expected.sum().backward()
    rounding = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 1e-5}[dtype]
    for ours, theirs in [(hidden, exact_hidden)] + ([] if frozen else [(weight, exact_weight)]):
        assert ours.grad.dtype == dtype
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=rounding, atol=rounding * 0.1)


def test_bfloat16_head_gradient_does_not_lose_small_contributions_over_many_tokens():
    """2000 equal contributions to one head row; summed in bfloat16 they would stall at 256 times one of them."""
    hidden = torch.full((1, 2000, 4), 0.01, dtype=torch.bfloat16)
    weight = torch.zeros(8, 4, dtype=torch.bfloat16, requires_grad=True)
    labels, mask = torch.zeros(1, 2000, dtype=torch.long), torch.ones(1, 2000, dtype=torch.bool)
    token_logprobs(hidden, weight, labels, mask, tile_bytes=4).sum().backward()
    assert weight.grad[0, 0].item() == pytest.approx(2000 * 0.875 * hidden[0, 0, 0].item(), rel=4e-3)


def test_an_all_masked_batch_gives_zeros_that_backpropagate_zeros():
    hidden, weight, offset, labels, mask = example(bias=True)
    found, entropy = token_logprobs(hidden, weight, labels, mask & False, bias=offset, return_entropy=True)
    assert not found.any()
    (found.sum() + entropy.sum()).backward()
    for tensor in (hidden, weight, offset):
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


@pytest.mark.parametrize("frozen", [False, True])
def test_nan_under_the_mask_reaches_nothing(frozen):
    hidden, weight, _, labels, mask = example(frozen=frozen)
    broken = hidden.detach().masked_fill(~mask.unsqueeze(-1), float("nan")).requires_grad_()
    found = token_logprobs(broken, weight, labels, mask)
    torch.testing.assert_close(found, token_logprobs(hidden, weight, labels, mask))
    found.sum().backward()
    assert broken.grad.isfinite().all()
    assert frozen or weight.grad.isfinite().all()


def test_nan_in_one_scored_token_stays_in_that_token():
    hidden, weight, _, labels, mask = example(frozen=True)
    first = tuple(mask.nonzero()[0].tolist())
    broken = hidden.detach().clone()
    broken[first] = float("nan")
    found = token_logprobs(broken.requires_grad_(), weight, labels, mask)
    assert found[first].isnan()
    assert found.isnan().sum() == 1


def test_no_grad_gives_the_same_values_without_a_graph():
    hidden, weight, _, labels, mask = example()
    with torch.no_grad():
        found, entropy = token_logprobs(hidden, weight, labels, mask, return_entropy=True)
    assert not found.requires_grad
    expected = naive_logprobs(hidden, weight, labels, mask)
    torch.testing.assert_close((found, entropy), tuple(x.detach() for x in expected))


def test_log_probabilities_are_never_above_zero():
    hidden = torch.randn(1, 50, 16) * 30
    weight = torch.randn(200, 16) * 30
    labels = (hidden @ weight.T).argmax(-1)
    assert token_logprobs(hidden, weight, labels, labels >= 0).max() <= 0


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned, and whether one had a given shape."""

    def __init__(self, forbidden_shape=None):
        super().__init__()
        self.largest, self.forbidden_shape, self.seen = 0, forbidden_shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            # Views cost nothing; a head slice is a view of the head.
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.largest = max(self.largest, tensor.numel())
                self.seen += tensor.shape == self.forbidden_shape
        return out


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
def test_no_tensor_of_tokens_times_vocabulary_exists(frozen, entropy):
    hidden = torch.randn(4, 100, 2, requires_grad=True)
    weight = torch.randn(5000, 2, requires_grad=not frozen)
    labels = torch.randint(0, 5000, (4, 100))
    tile_elements = 64 * 1024
    with LargestTensor() as sizes:
        found = token_logprobs(
            hidden, weight, labels, labels >= 0, tile_bytes=4 * tile_elements, return_entropy=entropy, softcap=5.0
        )
        (found[0] + found[1] if entropy else found).sum().backward()
    assert sizes.largest <= max(tile_elements, 400 * 256)
    assert sizes.largest < 400 * 5000 / 10


def test_a_frozen_head_has_no_gradient_and_no_work_for_one():
    hidden, weight, _, labels, mask = example(frozen=True)
    with LargestTensor(forbidden_shape=weight.shape) as sizes:
        token_logprobs(hidden, weight, labels, mask, tile_bytes=4).sum().backward()
    assert weight.grad is None
    assert sizes.seen == 0


def test_frozen_states_get_no_gradient_while_the_head_does():
    hidden, weight, _, labels, mask = example()
    token_logprobs(hidden.detach(), weight, labels, mask).sum().backward()
    expected = torch.autograd.grad(naive_logprobs(hidden, weight, labels, mask)[0].sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)


def test_trl_kernel_gives_the_same_numbers():
    hidden, weight, offset, labels, mask = example(dtype=torch.float32, bias=True)
    arguments = {"bias": offset, "softcap": 3.0, "logit_scale": 0.5, "temperature": 0.8, "return_entropy": True}
    results = [token_logprobs(hidden, weight, labels, mask, backend=b, **arguments) for b in ("torch", "trl")]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(x.sum() + e.square().sum(), (hidden, weight, offset)) for x, e in results]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_trl_still_has_the_function_that_compat_wraps():
    import inspect

    from trl.kernels import ChunkedLogProbFunction

    names = list(inspect.signature(ChunkedLogProbFunction.forward).parameters)
    assert names == [
        *("ctx", "hidden", "weight", "bias", "targets", "temperature", "chunk_size"),
        *("final_logit_softcapping", "logit_scale", "outputs"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, 6, dtype=torch.long)}, "labels \\(3, 6\\)"),
        ({"lm_head_weight": torch.randn(10, 4)}, "lm_head_weight must be \\(V, 9\\)"),
        ({"lm_head_weight": torch.ones(10, 9, dtype=torch.int8)}, "quantised"),
        ({"bias": torch.zeros(3)}, "bias must be \\(700,\\)"),
        ({"labels": torch.full((3, 7), 700)}, "outside the vocabulary \\[0, 700\\), the first is 700"),
        ({"labels": torch.full((3, 7), -100)}, "the first is -100"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"softcap": -1.0}, "softcap must be positive"),
        ({"backend": "cuda"}, "backend must be"),
    ],
)
def test_bad_arguments_are_named(change, message):
    hidden, weight, _, labels, mask = example()
    arguments = {"hidden": hidden, "lm_head_weight": weight, "labels": labels, "mask": mask, **change}
    with pytest.raises(ValueError, match=message):
        token_logprobs(**arguments)
