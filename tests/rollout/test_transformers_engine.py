"""The embedded engine against transformers' own generate, against scored log-probs, and against itself."""

import pytest
import torch
from rollout_models import build_lora, build_model
from transformers import MistralConfig, MistralForCausalLM

from negpo.errors import ConfigError
from negpo.rollout import EngineError, Sampling, StaleWeightsError, make_engine
from negpo.rollout.probe import score_tokens

SAMPLED = Sampling(n=4, max_new_tokens=24, seed=7)


def flat(rows):
    return {(s.prompt, s.index): s for row in rows for s in row}


def tokens(rows):
    return {pair: s.token_ids for pair, s in flat(rows).items()}


def test_greedy_equals_generate_of_transformers(model, prompts):
    rows = make_engine("transformers", model).generate(prompts, Sampling(temperature=0, max_new_tokens=24))
    for prompt, (sample,) in zip(prompts, rows, strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :]
        assert sample.token_ids == expected.tolist()
        assert sample.finish_reason == ("stop" if sample.token_ids[-1] == 2 else "length")


def test_greedy_equals_generate_when_attention_slides_over_a_window(prompts):
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 8, "initializer_range": 0.2}
    model = MistralForCausalLM(MistralConfig(**shape, **heads, eos_token_id=2, pad_token_id=0)).eval()
    rows = make_engine("transformers", model).generate(prompts, Sampling(temperature=0, max_new_tokens=24))
    for prompt, (sample,) in zip(prompts, rows, strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :]
        assert sample.token_ids == expected.tolist()


@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(greedy=True, max_new_tokens=24)], ids=["sampled", "greedy"])
def test_logprobs_are_those_of_a_fresh_forward_pass(model, prompts, sampling):
    rows = flat(make_engine("transformers", model).generate(prompts, sampling)).values()
    scored = score_tokens(model, [prompts[s.prompt] + s.token_ids for s in rows])
    for sample, row in zip(rows, scored, strict=True):
        assert sample.logprobs == pytest.approx(row[-len(sample.token_ids) :], abs=1e-5)


def test_logprobs_follow_the_temperature_and_ignore_truncation(model, prompts):
    sampling = Sampling(temperature=0.5, top_p=0.8, top_k=20, max_new_tokens=1)
    (sample,) = make_engine("transformers", model).generate(prompts[:1], sampling)[0]
    logits = model(torch.tensor(prompts[:1])).logits[0, -1]
    expected = torch.log_softmax(logits.detach() / 0.5, -1)[sample.token_ids[0]]
    assert sample.logprobs[0] == pytest.approx(float(expected), abs=1e-5)


def test_samples_do_not_depend_on_batching_order_or_on_which_are_wanted(model, prompts):
    engine = make_engine("transformers", model)
    everything = tokens(engine.generate(prompts, SAMPLED))
    engine.max_rows = 5
    assert tokens(engine.generate(prompts, SAMPLED)) == everything
    wanted = [(11, 3), (0, 1), (4, 2)]
    assert tokens(engine.generate(prompts, SAMPLED, wanted=wanted)) == {pair: everything[pair] for pair in wanted}
    backwards = engine.generate(prompts[::-1], SAMPLED, prompt_keys=range(11, -1, -1))
    assert [[s.token_ids for s in row] for row in backwards[::-1]] == [
        [everything[p, k] for k in range(4)] for p in range(12)
    ]


def test_another_seed_or_another_sample_index_draws_something_else(model, prompts):
    engine = make_engine("transformers", model)
    first = engine.generate(prompts, SAMPLED)
    second = engine.generate(prompts, Sampling(n=4, max_new_tokens=24, seed=8))
    assert all(tokens(first)[pair] != tokens(second)[pair] for pair in tokens(first))
    assert all(len({tuple(s.token_ids) for s in row}) == 4 for row in first)


def test_a_longer_budget_continues_the_same_sample(model, prompts):
    engine = make_engine("transformers", model)
    short = engine.generate(prompts, Sampling(max_new_tokens=8, stop_token_ids=()))
    long = engine.generate(prompts, Sampling(max_new_tokens=16, stop_token_ids=()))
    assert all(b.token_ids[:8] == a.token_ids for (a,), (b,) in zip(short, long, strict=True))


def test_sampling_frequencies_are_the_models_probabilities(model, prompts):
    sampling = Sampling(n=4000, max_new_tokens=1, logprobs=False, temperature=1.5)
    drawn = [
        s.token_ids[0] for s in make_engine("transformers", model, max_rows=4000).generate(prompts[:1], sampling)[0]
    ]
    expected = torch.softmax(model(torch.tensor(prompts[:1])).logits[0, -1] / 1.5, -1)
    frequency = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / len(drawn)
    # Total variation distance of 4000 draws from k likely outcomes is about sqrt(k / (2 pi 4000)).
    assert (frequency - expected).abs().sum() / 2 < 0.06


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({"top_k": 3}, 3), ({"top_p": 0.01}, 1), ({"min_p": 0.999}, 1), ({"top_k": 50, "top_p": 0.01}, 1)],
)
def test_truncation_keeps_only_the_likeliest_tokens(model, prompts, settings, kept):
    sampling = Sampling(n=200, max_new_tokens=1, **settings)
    drawn = {s.token_ids[0] for s in make_engine("transformers", model).generate(prompts[:1], sampling)[0]}
    likeliest = model(torch.tensor(prompts[:1])).logits[0, -1].topk(kept).indices.tolist()
    assert drawn <= set(likeliest)


def test_a_stop_id_ends_the_sample_and_stays_in_it(model, prompts):
    engine = make_engine("transformers", model)
    free = flat(engine.generate(prompts, Sampling(max_new_tokens=24, stop_token_ids=())))
    stop = free[0, 0].token_ids[5]
    for pair, sample in flat(engine.generate(prompts, Sampling(max_new_tokens=24, stop_token_ids=(stop,)))).items():
        whole = free[pair].token_ids
        cut = whole.index(stop) + 1 if stop in whole else 24
        assert sample.token_ids == whole[:cut]
        assert sample.finish_reason == ("stop" if stop in whole else "length")


def test_samples_handed_out_before_an_interrupt_can_be_kept_and_the_rest_drawn_later(model, prompts):
    engine, kept = make_engine("transformers", model, max_rows=6), []

    def stop_after_ten(sample):
        kept.append(sample)
        if len(kept) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, SAMPLED, on_sample=stop_after_ten)
    done = {(s.prompt, s.index): s.token_ids for s in kept}
    missing = [(p, k) for p in range(12) for k in range(4) if (p, k) not in done]
    done |= tokens(engine.generate(prompts, SAMPLED, wanted=missing))
    assert len(kept) == 10
    assert done == tokens(engine.generate(prompts, SAMPLED))


def test_training_flags_and_attention_setting_survive_a_call(model, prompts):
    model.train()
    model.model.layers[0].eval()
    make_engine("transformers", model).generate(prompts[:2], Sampling(max_new_tokens=2))
    assert model.training
    assert not model.model.layers[0].training
    assert model.config._attn_implementation == "sdpa"


def test_running_out_of_memory_halves_the_batch_and_finishes(model, prompts, monkeypatch):
    engine = make_engine("transformers", model, max_rows=16)
    expected = tokens(engine.generate(prompts, SAMPLED))
    run = model.forward

    def forward(*args, input_ids, **kwargs):
        if len(input_ids) > 8:
            raise torch.OutOfMemoryError("pretended")
        return run(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    assert tokens(engine.generate(prompts, SAMPLED)) == expected


def test_memory_that_never_suffices_is_an_error_that_names_the_request(model, prompts, monkeypatch):
    def forward(*args, **kwargs):
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(EngineError, match=r"out of memory 3 times.*prompt 0 sample 0"):
        make_engine("transformers", model).generate(prompts, SAMPLED)


@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(greedy=True, max_new_tokens=4)])
def test_a_model_full_of_nan_is_an_error_and_not_a_sample(model, prompts, sampling):
    model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(EngineError, match="not finite at token 0 of prompt"):
        make_engine("transformers", model).generate(prompts, sampling)


def test_a_lora_model_is_decoded_with_its_adapters_and_needs_no_copy(prompts):
    trainer = build_lora(build_model())
    engine = make_engine("transformers", trainer)
    assert engine.sync(trainer).tokens == 0
    merged = make_engine("transformers", build_lora(build_model()).merge_and_unload())
    assert tokens(engine.generate(prompts, SAMPLED)) == tokens(merged.generate(prompts, SAMPLED))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt_ids": [[]]}, "prompt 0 has no tokens"),
        ({"prompt_ids": [[5]], "wanted": [(0, 4)]}, r"wanted names .prompt, sample. \(0, 4\)"),
        ({"prompt_ids": [[5], [6]], "prompt_keys": ["a", "a"]}, "repeats a key"),
        ({"prompt_ids": [[5] * 250]}, "exceed the model's 256 positions"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(model, call, message):
    with pytest.raises(ConfigError, match=message):
        make_engine("transformers", model).generate(sampling=SAMPLED, **call)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="top_p=0"):
        Sampling(top_p=0)
    with pytest.raises(ConfigError, match="engine 'vlm' does not exist"):
        make_engine("vlm", "folder")


def test_sync_copies_another_models_weights_and_proves_it(prompts):
    engine, trainer = make_engine("transformers", build_model(seed=0)), build_model(seed=1)
    report = engine.sync(trainer)
    assert report.max_gap < 1e-6
    assert report.tokens == 60
    greedy = Sampling(greedy=True, max_new_tokens=8)
    assert tokens(engine.generate(prompts, greedy)) == tokens(
        make_engine("transformers", trainer).generate(prompts, greedy)
    )


def test_sync_merges_lora_into_a_plain_engine_model(prompts):
    engine, trainer = make_engine("transformers", build_model()), build_lora(build_model())
    assert engine.sync(trainer).max_gap < 1e-4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layer", ["model.layers.1.self_attn.o_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_a_layer_left_stale_on_purpose_is_refused_by_name(tied, layer, monkeypatch):
    if tied and layer.startswith("lm_head"):
        layer = "model.embed_tokens.weight"
    engine, trainer = make_engine("transformers", build_model(tied=tied)), build_model(tied=tied)
    trainer.get_parameter(layer).data.add_(0.05)

    def copy_all_but_one(source, target):
        for name, parameter in target.named_parameters():
            if name != layer:
                parameter.data.copy_(source.get_parameter(name))

    monkeypatch.setattr("negpo.rollout.transformers_engine.copy_weights", copy_all_but_one)
    with pytest.raises(StaleWeightsError, match="does not hold the trainer's weights") as refused:
        engine.sync(trainer)
    assert refused.value.layers == [layer]


def test_a_float32_engine_holds_the_weights_of_a_trainer_under_bfloat16_autocast_and_a_stale_layer_is_still_caught(
    monkeypatch,
):
    """Autocast rounds the trainer's products, not its weights: only the weights are compared."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from negpo.rollout.probe import Probe, stored_precision

    AcceleratorState._reset_state()  # another test may have settled on another precision
    trainer = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(build_model(seed=3))
    engine = make_engine("transformers", build_model(seed=0))
    assert engine.sync(trainer).max_gap < 1e-4
    sequences = Probe.for_model(trainer).sequences
    rounded = score_tokens(trainer, sequences)
    with stored_precision(trainer):
        exact = score_tokens(trainer, sequences)
    gap = max(abs(a - b) for x, y in zip(rounded, exact, strict=True) for a, b in zip(x, y, strict=True))
    assert gap > 1e-3, "autocast is back after the proof"
    trainer.model.layers[1].mlp.up_proj.weight.data.mul_(1.001)
    monkeypatch.setattr("negpo.rollout.transformers_engine.copy_weights", lambda source, target: 0)
    with pytest.raises(StaleWeightsError) as refused:
        engine.sync(trainer)
    assert refused.value.layers == ["model.layers.1.mlp.up_proj.weight"]


@pytest.mark.parametrize("side", [torch.float32, torch.bfloat16])
def test_a_bfloat16_trainer_is_proven_against_either_dtype_and_a_small_step_is_still_caught(side, monkeypatch):
    trainer = build_model(seed=3).to(torch.bfloat16)
    engine = make_engine("transformers", build_model(seed=0).to(side))
    engine.sync(trainer)
    trainer.model.layers[0].self_attn.k_proj.weight.data.mul_(1.02)
    monkeypatch.setattr("negpo.rollout.transformers_engine.copy_weights", lambda source, target: 0)
    with pytest.raises(StaleWeightsError) as refused:
        engine.sync(trainer)
    assert refused.value.layers == ["model.layers.0.self_attn.k_proj.weight"]


def test_deterministic_samples_and_logprobs_are_bit_equal_alone_and_among_sixty_three_others(model):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 30, (64,), generator=generator).tolist()
    prompts = [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]
    engine = make_engine("transformers", model, max_rows=64, deterministic=True)
    sampling = Sampling(max_new_tokens=12, seed=7)
    together = engine.generate(prompts, sampling)
    for place in (0, 13, 63):
        ((alone,),) = engine.generate([prompts[place]], sampling, prompt_keys=[place])
        assert alone.token_ids == together[place][0].token_ids
        assert alone.logprobs == together[place][0].logprobs  # the same bits
    scores = engine.score(prompts)
    assert all(engine.score([prompts[place]]) == [scores[place]] for place in (0, 13, 63))


def test_vllm_says_that_it_is_not_deterministic_on_a_cpu(model, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU may have the kernels")
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="batch-invariant kernels need a GPU"):
        make_engine("vllm", str(tmp_path), deterministic=True)
