"""The streamed statistics against full logits: values, gradients, tiles, soft caps, models and layouts."""

import pytest
import torch
from logprobs_support import VOCAB, full_logits, tiny_model

from negpo.logprobs import HeadSpec
from negpo.logprobs.statistics import Complement, RestCrossEntropy, Spread, token_statistic
from negpo.logprobs.statistics_model import model_token_statistic

N, H, V = 9, 6, 700  # more vocabulary than the narrowest tile holds


def at(x, labels):
    return x.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def naive(statistic, z, labels, ref=None):
    """(value, constant) on full logits."""
    rest = z.scatter(-1, labels.unsqueeze(-1), -torch.inf)
    if isinstance(statistic, Spread):
        return z.amax(-1) - z.mean(-1), None
    if isinstance(statistic, Complement):
        q = rest.softmax(-1)
        return rest.logsumexp(-1) - z.logsumexp(-1), -torch.special.xlogy(q, q).sum(-1)
    ref_rest = ref.scatter(-1, labels.unsqueeze(-1), -torch.inf)
    return -(ref_rest.softmax(-1) * z.log_softmax(-1)).sum(-1), at(ref, labels) - ref_rest.logsumexp(-1)


STATISTICS = [Complement, Spread, RestCrossEntropy]


def problem(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    hidden, weight, bias = torch.randn(N, H), torch.randn(V, H), torch.randn(V)
    ref_hidden, ref_weight = torch.randn(N, H + 2), torch.randn(V, H + 2)
    labels = torch.randint(0, V, (N,))
    labels[:3] = torch.tensor([0, V - 1, 256])
    return [x.to(dtype) for x in (hidden, weight, bias, ref_hidden, ref_weight)] + [labels]


@pytest.mark.parametrize("kind", STATISTICS)
@pytest.mark.parametrize("tile_bytes", [1, None])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_values_and_gradients_are_those_of_full_logits(kind, tile_bytes, softcap):
    hidden, weight, bias, ref_hidden, ref_weight, labels = problem()
    inputs = [x.requires_grad_() for x in (hidden, weight, bias)]
    reference = {"ref_hidden": ref_hidden, "ref_head": ref_weight} if kind.uses_reference else {}
    spec = HeadSpec(weight, bias, logit_scale=0.7, softcap=softcap)
    value, constant = token_statistic(kind(), hidden, spec, labels, tile_bytes=tile_bytes, **reference)
    z = full_logits(hidden, weight, bias, logit_scale=0.7, softcap=softcap)
    expected, expected_constant = naive(kind(), z, labels, ref_hidden @ ref_weight.T)
    assert torch.allclose(value, expected, atol=1e-11)
    assert (constant is None) == (expected_constant is None)
    if constant is not None:
        assert torch.allclose(constant, expected_constant, atol=1e-11)
        assert not constant.requires_grad
    upstream = torch.randn(N, dtype=torch.float64)
    for got, want in zip(
        torch.autograd.grad(value @ upstream, inputs), torch.autograd.grad(expected @ upstream, inputs), strict=True
    ):
        assert torch.allclose(got, want, atol=1e-10)


@pytest.mark.parametrize("kind", STATISTICS)
def test_gradcheck(kind):
    hidden, weight, _, ref_hidden, ref_weight, labels = problem(1)
    keep = 8
    weight, ref_weight, labels = weight[:keep], ref_weight[:keep], labels % keep
    reference = {"ref_hidden": ref_hidden, "ref_head": ref_weight} if kind.uses_reference else {}
    hidden.requires_grad_()
    weight = weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: token_statistic(kind(), h, HeadSpec(w), labels, **reference)[0], (hidden, weight)
    )


def test_the_complement_of_a_certain_token_keeps_its_digits_in_float32():
    z = torch.tensor([[40.0, 0.0, -1.0]])
    value, _ = token_statistic(Complement(), z, torch.eye(3), torch.tensor([0]))
    expected = torch.tensor([0.0, -1.0], dtype=torch.float64).logsumexp(0) - 40.0
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)  # log(1 - p) from a float32 p would be -inf
    z.requires_grad_()
    token_statistic(Complement(), z, torch.eye(3), torch.tensor([0]))[0].backward()
    assert z.grad[0, 0].item() == pytest.approx(-1.0)


@pytest.mark.parametrize("kind", STATISTICS)
def test_no_token_gives_no_value_and_zero_gradients(kind):
    hidden, weight, _, ref_hidden, ref_weight, labels = problem()
    reference = {"ref_hidden": ref_hidden[:0], "ref_head": ref_weight} if kind.uses_reference else {}
    states = hidden[:0].requires_grad_()
    weight.requires_grad_()
    value, _ = token_statistic(kind(), states, HeadSpec(weight), labels[:0], **reference)
    value.sum().backward()
    assert value.shape == (0,)
    assert (weight.grad == 0).all()


def test_wrong_input_is_refused_by_name():
    hidden, weight, _, ref_hidden, ref_weight, labels = problem()
    with pytest.raises(ValueError, match="RestCrossEntropy needs reference"):
        token_statistic(RestCrossEntropy(), hidden, weight, labels)
    with pytest.raises(ValueError, match="Spread has no reference"):
        token_statistic(Spread(), hidden, weight, labels, ref_hidden=ref_hidden, ref_head=ref_weight)
    with pytest.raises(ValueError, match=f"outside the vocabulary \\[0, {V}\\)"):
        token_statistic(Complement(), hidden, weight, labels + V)
    with pytest.raises(ValueError, match="heads have 700 and 699 rows"):
        token_statistic(RestCrossEntropy(), hidden, weight, labels, ref_hidden=ref_hidden, ref_head=ref_weight[:-1])


def batch():
    torch.manual_seed(3)
    ids = torch.randint(3, VOCAB, (4, 12))
    lengths, prompts = (12, 9, 6, 4), (3, 2, 4, 1)
    attention = torch.tensor([[int(t < n) for t in range(12)] for n in lengths])
    labels = torch.full_like(ids, -100)
    for row, (start, end) in enumerate(zip(prompts, lengths, strict=True)):
        labels[row, start:end] = ids[row, start:end]
    return ids, attention, labels


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "granite", "gpt2_tied"])
@pytest.mark.parametrize("kind", STATISTICS)
def test_a_models_statistic_is_that_of_its_own_logits_in_every_layout(name, kind):
    model, ref_model = tiny_model(name), tiny_model(name, seed=1)
    ids, attention, labels = batch()
    predicts = torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1))
    with torch.no_grad():
        z, ref = (m(ids, attention_mask=attention).logits.double() for m in (model, ref_model))
    targets = torch.nn.functional.pad(labels[:, 1:].clamp(min=0), (0, 1))
    expected, _ = naive(kind(), z, targets, ref)
    reference = {"ref_model": ref_model} if kind.uses_reference else {}
    for packing in ("padded", "packed"):
        found = model_token_statistic(model, ids, attention, labels, kind(), packing=packing, **reference)
        assert torch.allclose(found.value[predicts].double(), expected[predicts], atol=2e-4)
        assert (found.value[~predicts] == 0).all()
        logps = at(z.log_softmax(-1)[:, :-1], targets[:, :-1])
        assert torch.allclose(found.logps[found.mask].double(), logps[found.mask], atol=1e-4)


def test_positions_may_be_those_of_the_labels_themselves():
    model = tiny_model()
    ids, attention, labels = batch()
    with torch.no_grad():
        z = model(ids, attention_mask=attention).logits
    chosen = labels != -100  # unshifted: the first row's last state, which predicts nothing, is in
    found = model_token_statistic(model, ids, attention, labels, Spread(), positions=chosen)
    assert torch.allclose(found.value[chosen], (z.amax(-1) - z.mean(-1))[chosen], atol=1e-4)
    found.value.sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
