"""The streamed KL against its definition, and the evaluation statistics against full log-softmax."""

import copy

import pytest
import torch
from logprobs_support import CONFIGS, full_logits, tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model

from negpo.logprobs import HeadSpec, model_token_stats, retain_kl_from_models, streamed_kl
from negpo.objectives import retain_kl


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_streamed_kl_equals_its_definition_with_gradients(softcap, frozen, masked):
    torch.manual_seed(0)
    hidden = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(600, 8, dtype=torch.float64, requires_grad=not frozen)
    bias = torch.randn(600, dtype=torch.float64, requires_grad=not frozen)
    ref_hidden, ref_weight = torch.randn(2, 6, 5, dtype=torch.float64), torch.randn(600, 5, dtype=torch.float64)
    mask = torch.rand(2, 6) > 0.5 if masked else None
    head = HeadSpec(weight, bias, 0.7, softcap)
    found = streamed_kl(hidden, head, ref_hidden, ref_weight, mask, tile_bytes=4)
    logits = full_logits(hidden, weight, bias, logit_scale=0.7, softcap=softcap)
    expected, _ = retain_kl(logits.log_softmax(-1), full_logits(ref_hidden, ref_weight).log_softmax(-1), mask)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    inputs = (hidden,) if frozen else (hidden, weight, bias)
    grads = [torch.autograd.grad(3 * x, inputs) for x in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_kl_of_a_model_with_itself_is_zero_with_zero_gradient():
    hidden, weight = torch.randn(3, 4, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    found = streamed_kl(hidden, weight, hidden, weight)
    found.backward()
    assert found.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_kl_without_a_position_or_with_two_vocabularies_is_refused():
    hidden, weight = torch.randn(1, 4, 8), torch.randn(50, 8)
    with pytest.raises(ValueError, match="no position"):
        streamed_kl(hidden, weight, hidden, weight, torch.zeros(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="50 and 49 rows"):
        streamed_kl(hidden, weight, hidden, weight[:-1])
    with pytest.raises(ValueError, match="same positions"):
        streamed_kl(hidden, weight, hidden[:, 1:], weight)


@pytest.mark.parametrize("positions", ["all", "real"])
def test_model_kl_to_a_second_model_equals_its_definition(positions):
    model, reference = tiny_model("gemma2"), tiny_model("gemma2", seed=3)
    ids, attention_mask, _ = tiny_batch()
    mask = attention_mask.bool() if positions == "real" else None
    found = retain_kl_from_models(model, reference, ids, attention_mask, mask)
    log_p, ref_log_p = (
        m(input_ids=ids, attention_mask=attention_mask).logits.log_softmax(-1) for m in (model, reference)
    )
    expected, _ = retain_kl(log_p, ref_log_p, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-5)
    assert all(p.grad is None for p in reference.parameters()) or positions is None


def test_model_kl_with_adapters_off_is_the_kl_to_the_base_model():
    base = tiny_model()
    reference = copy.deepcopy(base)
    model = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj", "lm_head"]))
    ids, attention_mask, _ = tiny_batch()
    mask = attention_mask.bool()
    found = retain_kl_from_models(model, None, ids, attention_mask, mask)
    torch.testing.assert_close(found, retain_kl_from_models(model, reference, ids, attention_mask, mask))
    assert found > 0
    with pytest.raises(ValueError, match="no PEFT adapters"):
        retain_kl_from_models(reference, None, ids, attention_mask)


@pytest.mark.parametrize("packing", ["padded", "packed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_token_statistics_equal_full_log_softmax(name, packing):
    model, (ids, attention_mask, labels) = tiny_model(name), tiny_batch()
    with torch.no_grad():
        log_p = model(input_ids=ids, attention_mask=attention_mask).logits[:, :-1].double().log_softmax(-1)
    labels[:, 6] = log_p[:, 5].argmax(-1).where(labels[:, 6] != -100, -100)  # some that are right
    found = model_token_stats(model, ids, attention_mask, labels, packing=packing, tile_bytes=4)
    mask, log_p = labels[:, 1:] != -100, log_p[labels[:, 1:] != -100]
    targets = labels[:, 1:][mask]
    mean = (log_p.exp() * log_p).sum(-1)
    variance = (log_p.exp() * log_p.square()).sum(-1) - mean.square()
    torch.testing.assert_close(
        found.logps[mask].double(), log_p.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(found.mean[mask].double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.std[mask].double(), variance.clamp(min=1e-6).sqrt(), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.correct[mask], log_p.argmax(1) == targets)
    assert found.correct.any()
    assert not found.correct[~mask].any()
