"""Whole models: every head variant, every wrapper, packed and padded, against the model's own logits."""

import pytest
import torch
from logprobs_support import CONFIGS, VOCAB, model_reference, tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig

from negpo.logprobs import backbone_hidden, head_of, model_token_logprobs
from negpo.logprobs.layout import choose_lines, packed_layout
from negpo.logprobs.model import supports_packing


def gradients(model, loss):
    """Gradients of the trainable parameters by name; None where none arrived."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packing", ["padded", "packed", "auto"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probabilities_and_gradients_equal_the_models_own_logits(name, side, packing):
    model, batch = tiny_model(name), tiny_batch(side)
    expected = model_reference(model, *batch)
    found = model_token_logprobs(model, *batch, packing=packing)
    torch.testing.assert_close(found.logps, expected, rtol=1e-5, atol=1e-5)
    assert (found.mask == (batch[2][:, 1:] != -100)).all()
    upstream = torch.randn_like(expected)
    theirs = gradients(model, (expected * upstream).sum())
    ours = gradients(model, (found.logps * upstream).sum())
    assert ours.keys() == theirs.keys()
    for key, grad in ours.items():
        scale = theirs[key].abs().max() + 1e-3
        assert (grad - theirs[key]).abs().max() <= 1e-5 * scale, key


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_rows_equal_padded_rows(name):
    model, batch = tiny_model(name), tiny_batch()
    assert supports_packing(model)
    padded, packed = (
        model_token_logprobs(model, *batch, return_entropy=True, return_hidden=True, packing=packing)
        for packing in ("padded", "packed")
    )
    torch.testing.assert_close(packed.logps, padded.logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.entropy, padded.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.hidden[padded.mask], padded.hidden[padded.mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
        BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    ],
    ids=["recurrent", "alibi"],
)
def test_models_whose_rows_would_mix_fall_back_to_padding(config):
    torch.manual_seed(0)
    model, batch = AutoModelForCausalLM.from_config(config).eval(), tiny_batch()
    assert not supports_packing(model)
    ids, attention_mask, labels = batch
    logits = model(input_ids=ids, attention_mask=attention_mask).logits[:, :-1].log_softmax(-1)
    expected = logits.gather(-1, labels[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1).where(labels[:, 1:] != -100, 0)
    torch.testing.assert_close(model_token_logprobs(model, *batch, packing="packed").logps, expected)


def test_the_packing_test_leaves_modes_and_random_state_alone():
    model = tiny_model()
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()], torch.get_rng_state()
    supports_packing(model)
    assert [module.training for module in model.modules()] == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_mask_with_a_hole_before_a_label_is_scored_unpacked():
    """A label whose predicting position is masked out of attention exists only in the padded layout."""
    model, (ids, attention_mask, labels) = tiny_model(), tiny_batch()
    attention_mask[0, 10] = 0
    found = model_token_logprobs(model, ids, attention_mask, labels, packing="packed")
    torch.testing.assert_close(
        found.logps, model_token_logprobs(model, ids, attention_mask, labels, packing="padded").logps
    )


def test_packing_loses_no_token_and_restarts_positions():
    ids, attention_mask, _ = tiny_batch("left")
    layout = packed_layout(ids, attention_mask, [[0], [3, 2], [1]])
    assert layout.input_ids.shape == (3, 20)
    real = attention_mask.bool()
    assert torch.equal(layout.input_ids.reshape(-1)[layout.place[real]], ids[real])
    assert torch.equal(layout.position_ids.reshape(-1)[layout.place[real]], (attention_mask.cumsum(1) - 1)[real])
    assert layout.place[real].unique().numel() == int(real.sum())
    assert layout.position_ids[1].tolist() == [*range(13), *range(5), 0, 1]


def test_lines_are_chosen_by_cost():
    assert choose_lines([64] * 8, 64, 512) is None
    assert sorted(row for line in choose_lines([64, 20, 20, 20], 64, 512) for row in line) == [0, 1, 2, 3]
    assert len(choose_lines([64, 20, 20, 20], 64, 4096)) < 4
    assert len(choose_lines([1000, 10, 10, 1000], 1000, 64)) == 2
    assert choose_lines([5, 9], 9, 64, single=True) == [[0, 1]]


@pytest.mark.parametrize("head", ["base", "lora", "saved"])
def test_peft_models_give_the_adapters_the_same_gradients(head):
    settings = {"lora": {"target_modules": ["q_proj", "lm_head"]}, "saved": {"modules_to_save": ["lm_head"]}}
    config = LoraConfig(r=3, init_lora_weights=False, **{"target_modules": ["q_proj"], **settings.get(head, {})})
    model, batch = get_peft_model(tiny_model(), config).eval(), tiny_batch()
    expected, found = model_reference(model, *batch), model_token_logprobs(model, *batch)
    torch.testing.assert_close(found.logps, expected, rtol=1e-5, atol=1e-5)
    theirs, ours = gradients(model, expected.sum()), gradients(model, found.logps.sum())
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(
            model_token_logprobs(model, *batch).logps, model_reference(model, *batch), rtol=1e-5, atol=1e-5
        )


def test_dropout_on_a_lora_head_is_refused():
    model = get_peft_model(tiny_model(), LoraConfig(r=2, lora_dropout=0.1, target_modules=["lm_head"])).train()
    with pytest.raises(ValueError, match="lora_dropout = 0\\.1 on lm_head"):
        model_token_logprobs(model, *tiny_batch())


def test_tied_heads_collect_the_gradients_of_both_uses():
    model, batch = tiny_model("llama_tied"), tiny_batch()
    assert head_of(model).weight is model.get_input_embeddings().weight
    both = gradients(model, model_token_logprobs(model, *batch).logps.sum())["model.embed_tokens.weight"]
    hidden = backbone_hidden(model, *batch[:2])
    with torch.no_grad():
        untied = nn.Parameter(head_of(model).weight.clone())
    from negpo.logprobs import token_logprobs

    labels = batch[2][:, 1:]
    loss = token_logprobs(hidden[:, :-1], untied, labels, labels != -100).sum()
    as_input, as_head = torch.autograd.grad(loss, (model.get_input_embeddings().weight, untied))
    torch.testing.assert_close(both, as_input + as_head, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unused", [False, True])
def test_ddp_reduces_every_gradient(unused, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, batch = tiny_model(), tiny_batch()
        theirs = gradients(model, model_reference(model, *batch).sum())
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=unused)
        for _ in range(2):  # a reducer that was not finished fails in the second step
            ours = gradients(model, model_token_logprobs(wrapped, *batch).logps.sum())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    finally:
        torch.distributed.destroy_process_group()


def test_gradients_survive_gradient_checkpointing():
    model, batch = tiny_model(), tiny_batch()
    plain = gradients(model, model_token_logprobs(model, *batch).logps.sum())
    model.train()
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(model, model_token_logprobs(model, *batch).logps.sum()), plain)


def test_temperature_and_entropy_follow_the_models_logits():
    model, batch = tiny_model("gemma2"), tiny_batch()
    found = model_token_logprobs(model, *batch, temperature=0.5, return_entropy=True)
    log_p = (model(input_ids=batch[0], attention_mask=batch[1]).logits[:, :-1] / 0.5).log_softmax(-1)
    torch.testing.assert_close(found.entropy, -(log_p.exp() * log_p).sum(-1).where(found.mask, 0), rtol=1e-5, atol=1e-5)


def test_a_batch_without_labels_backpropagates_zeros():
    model, (ids, attention_mask, labels) = tiny_model(), tiny_batch()
    found = model_token_logprobs(model, ids, attention_mask, torch.full_like(labels, -100))
    assert not any(grad.any() for grad in gradients(model, found.logps.sum()).values())


def test_a_model_that_treats_logits_in_an_unknown_way_is_refused():
    model = tiny_model()
    model.config.logit_scale = 0.5  # promised by the config, not done by Qwen2
    with pytest.raises(ValueError, match="changes its logits in a way that is not supported"):
        model_token_logprobs(model, *tiny_batch(), packing="padded")
    assert "forward" not in vars(model.lm_head)


def test_labels_of_another_tokenizer_are_refused():
    model, (ids, attention_mask, labels) = tiny_model(), tiny_batch()
    labels[0, 5] = VOCAB
    with pytest.raises(ValueError, match="vocabulary has 96 entries"):
        model_token_logprobs(model, ids, attention_mask, labels)


def test_a_model_without_a_language_head_is_refused():
    with pytest.raises(ValueError, match="no output embeddings"):
        head_of(nn.Linear(2, 2))
