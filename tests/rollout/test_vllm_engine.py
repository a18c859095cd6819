"""vLLM in this process against the transformers engine: same tokens, same log-probs, and no stale layer unnoticed."""

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rollout_models import build_lora, build_model

from negpo.errors import ConfigError
from negpo.rollout import EngineError, Sampling, StaleWeightsError, make_engine
from negpo.rollout.probe import Probe

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

GREEDY = Sampling(greedy=True, max_new_tokens=24)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request):
    return request.param


@pytest.fixture(scope="module")
def engine(tied, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    build_model(tied=tied).save_pretrained(folder)
    engine = make_engine("vllm", folder, max_model_len=256, cache_gib=0.25)
    yield engine
    engine.close()


@pytest.fixture
def fresh(engine, tied):
    """The engine holding the weights of the returned trainer model."""
    trainer = build_model(tied=tied)
    engine.sync(trainer)
    return engine, trainer


def pairs(rows):
    return {(s.prompt, s.index): s for row in rows for s in row}


def drift(model, seed):
    """An update of every weight, as large as a hundred optimiser steps."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.01 * torch.randn(parameter.shape, generator=generator))


def test_greedy_tokens_equal_those_of_transformers_and_logprobs_agree(fresh, prompts):
    engine, trainer = fresh
    ours, theirs = (pairs(e.generate(prompts, GREEDY)) for e in (engine, make_engine("transformers", trainer)))
    for pair, sample in theirs.items():
        assert ours[pair].token_ids == sample.token_ids
        assert ours[pair].finish_reason == sample.finish_reason
        assert ours[pair].logprobs == pytest.approx(sample.logprobs, abs=1e-4)


def test_sampled_logprobs_are_those_of_the_tempered_distribution(fresh, prompts):
    engine, trainer = fresh
    for sample in pairs(engine.generate(prompts, Sampling(temperature=0.7, n=2, max_new_tokens=8))).values():
        ids = torch.tensor([prompts[sample.prompt] + sample.token_ids])
        logits = trainer(ids).logits[0, len(prompts[sample.prompt]) - 1 : -1].detach() / 0.7
        expected = torch.log_softmax(logits, -1)[range(len(sample.token_ids)), sample.token_ids]
        assert sample.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_samples_do_not_depend_on_which_others_are_drawn_or_on_the_batch(fresh, prompts):
    engine, _ = fresh
    sampling = Sampling(n=3, max_new_tokens=12, seed=5)
    everything = pairs(engine.generate(prompts, sampling))
    seen = []
    wanted = [(3, 2), (7, 0), (11, 1)]
    some = pairs(engine.generate(prompts, sampling, wanted=wanted, on_sample=seen.append))
    assert some == {pair: everything[pair] for pair in wanted}
    assert {(s.prompt, s.index) for s in seen} == set(wanted)


def test_stop_ids_end_a_sample_inside(fresh, prompts):
    engine, _ = fresh
    whole = pairs(engine.generate(prompts, Sampling(greedy=True, max_new_tokens=12, stop_token_ids=())))
    stop = whole[0, 0].token_ids[4]
    cut = pairs(engine.generate(prompts, Sampling(greedy=True, max_new_tokens=12, stop_token_ids=(stop,))))
    expected = whole[0, 0].token_ids[: whole[0, 0].token_ids.index(stop) + 1]
    assert cut[0, 0].token_ids == expected
    assert cut[0, 0].finish_reason == "stop"


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_every_sync_of_a_moving_trainer_is_verified(engine, tied, lora, prompts):
    trainer = build_lora(build_model(tied=tied)) if lora else build_model(tied=tied)
    for update in range(4):
        drift(trainer, update)
        assert engine.sync(trainer).max_gap < 1e-4
        assert engine.stale_layers(trainer) == []
    ours, theirs = (pairs(e.generate(prompts, GREEDY)) for e in (engine, make_engine("transformers", trainer)))
    assert {p: s.token_ids for p, s in ours.items()} == {p: s.token_ids for p, s in theirs.items()}


def test_a_packed_head_that_is_not_packed_again_is_refused(fresh, tied, monkeypatch):
    """The silent trap of the CPU build: `reload_weights` alone leaves a tied head's packed weight as it was."""
    engine, trainer = fresh
    drift(trainer, 0)
    monkeypatch.setattr("negpo.rollout.vllm_worker.repack_kept_weights", lambda model: None)
    if not tied or torch.cuda.is_available():
        assert engine.sync(trainer).max_gap < 1e-4
        return
    with pytest.raises(StaleWeightsError, match=r"Layers that differ: lm_head.weight\.") as refused:
        engine.sync(trainer)
    assert refused.value.layers == ["lm_head.weight"]


@pytest.mark.parametrize(
    "layer", ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
)
def test_a_layer_left_stale_on_purpose_is_refused_by_name(fresh, layer, monkeypatch):
    engine, trainer = fresh
    from negpo.rollout import weights

    old, iterate = trainer.get_parameter(layer).detach().clone(), weights.iter_weights
    drift(trainer, 1)

    def hand_over_the_old_layer(model):
        # sync reads the weights twice: to load them, then to compare.
        monkeypatch.setattr(weights, "iter_weights", iterate)
        return ((name, old if name == layer else tensor) for name, tensor in iterate(model))

    monkeypatch.setattr(weights, "iter_weights", hand_over_the_old_layer)
    with pytest.raises(StaleWeightsError) as refused:
        engine.sync(trainer)
    assert refused.value.layers == [layer]


def test_the_probe_alone_sees_a_stale_layer(fresh, monkeypatch):
    engine, trainer = fresh
    trainer.model.layers[1].mlp.up_proj.weight.data.mul_(1.1)
    monkeypatch.setattr(engine, "stale_layers", lambda model: [])
    with pytest.raises(StaleWeightsError, match="No layer stands out"):
        Probe.for_model(trainer).verify(engine, trainer)


def test_a_failing_engine_is_retried_and_finished_samples_are_kept(fresh, prompts, monkeypatch):
    engine, _ = fresh
    expected = pairs(engine.generate(prompts, Sampling(n=2, max_new_tokens=12)))
    core, steps, seen = engine._llm.llm_engine, [], []
    step = core.step

    def fail_now_and_then():
        steps.append(1)
        if len(steps) in (6, 18):
            raise RuntimeError("pretended")
        return step()

    monkeypatch.setattr(core, "step", fail_now_and_then)
    assert pairs(engine.generate(prompts, Sampling(n=2, max_new_tokens=12), on_sample=seen.append)) == expected
    assert len(seen) == len(expected)


def test_an_engine_that_stays_dead_is_an_error_that_names_the_request(fresh, prompts, monkeypatch):
    engine, _ = fresh

    def fail():
        raise RuntimeError("pretended")

    monkeypatch.setattr(engine._llm.llm_engine, "step", fail)
    with pytest.raises(EngineError, match=r"failed 3 times.*prompt 0 sample 0"):
        engine.generate(prompts, GREEDY)


def test_what_vllm_cannot_do_is_refused(fresh, prompts):
    engine, _ = fresh
    with pytest.raises(ConfigError, match="after truncation"):
        engine.generate(prompts, Sampling(top_p=0.9))
    with pytest.raises(ConfigError, match="max_model_len=256"):
        engine.generate([[5] * 250], GREEDY)
    assert engine.generate(prompts[:1], Sampling(top_p=0.9, top_k=5, min_p=0.1, logprobs=False, max_new_tokens=3))


def test_starting_an_engine_leaves_the_trainers_process_as_it_was(tmp_path):
    build_model().save_pretrained(tmp_path)
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.get_rng_state(), random.getstate(), torch.set_num_threads, torch.get_num_threads()
    engine = make_engine("vllm", str(tmp_path), max_model_len=64, cache_gib=0.1)
    engine.close()
    engine.close()
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert (random.getstate(), torch.set_num_threads, torch.get_num_threads()) == expected[1:]


def test_every_rank_of_a_trainer_can_have_an_engine_and_keeps_its_process_group(tmp_path):
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # An engine started earlier in this process left its settings in the environment.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run([*command, script, tmp_path], capture_output=True, text=True, timeout=300, env=clean)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"needs a checkpoint folder with a config.json"):
        make_engine("vllm", str(tmp_path))


def test_the_private_names_we_use_still_exist():
    """Contract with vLLM 0.31: every name that is not in its documented interface."""
    import inspect

    from vllm.distributed.weight_transfer import (
        HTTPVLLMWeightSyncClient,
        ParamMeta,
        WeightSource,
        WeightTransferTrainerFactory,
    )
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert "remove_weight" in inspect.signature(dispatch_cpu_unquantized_gemm).parameters
    assert "weights_iterator" in inspect.signature(GPUModelRunner.reload_weights).parameters
    assert issubclass(EngineDeadError, Exception)
    assert issubclass(EngineGenerateError, Exception)
    fields = inspect.signature(NCCLTrainerInitInfo).parameters
    assert {"master_address", "master_port", "world_size", "rank"} <= fields.keys()
    assert {"client", "source"} <= inspect.signature(WeightTransferTrainerFactory.trainer_init).parameters.keys()
    assert list(inspect.signature(ParamMeta).parameters) == ["name", "dtype", "shape"]
    assert WeightSource.__abstractmethods__ == {"metadata", "__iter__"}
    assert "timeout" in inspect.signature(HTTPVLLMWeightSyncClient).parameters
    assert all(callable(getattr(LLMEngine, name)) for name in ("add_request", "step", "abort_request"))


@pytest.fixture(scope="module")
def adapter_engine(tied, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("adapter-base"))
    build_model(tied=tied).save_pretrained(folder)
    engine = make_engine("vllm", folder, max_model_len=256, cache_gib=0.25, adapter_rank=4)
    yield engine
    engine.close()


def test_an_adapter_goes_over_alone_and_a_hundred_syncs_leave_the_base_bit_equal(adapter_engine, tied, prompts):
    trainer = build_lora(build_model(tied=tied))
    base = {name: p.detach().clone() for name, p in trainer.named_parameters() if "lora" not in name}
    sent = set()
    for update in range(100 if tied else 4):
        drift(trainer, update)
        report = adapter_engine.sync(trainer)
        sent.add(report.bytes_sent)
        assert report.max_gap < 1e-4
    factors = 4 * sum(p.numel() for name, p in trainer.named_parameters() if "lora" in name)
    assert max(sent) < factors + 10_000  # names and the config file come on top
    assert adapter_engine._llm.llm_engine.list_loras() == {adapter_engine._adapters.request.lora_int_id}
    assert all(torch.equal(p, base[name]) for name, p in trainer.named_parameters() if "lora" not in name)
    (stale,) = adapter_engine._llm.collective_rpc(
        "negpo_stale_layers", args=(list(build_model(tied=tied).named_parameters()),)
    )
    assert stale == []
    ours, theirs = (pairs(e.generate(prompts, GREEDY)) for e in (adapter_engine, make_engine("transformers", trainer)))
    assert {p: s.token_ids for p, s in ours.items()} == {p: s.token_ids for p, s in theirs.items()}


def test_a_stale_adapter_is_refused_by_layer(adapter_engine, tied, monkeypatch):
    from negpo.rollout import adapters

    trainer = build_lora(build_model(tied=tied))
    adapter_engine.sync(trainer)
    old, iterate = list(adapters.iter_factors(trainer)), adapters.iter_factors
    trainer.base_model.model.model.layers[1].self_attn.q_proj.lora_B["default"].weight.data.mul_(1.001)
    load = adapter_engine._llm.llm_engine.add_lora

    def load_the_old_factors(request):
        monkeypatch.setattr(adapters, "iter_factors", lambda model: iter(old))
        stale = adapters.write_adapter(trainer, adapter_engine._adapters._folder)
        monkeypatch.setattr(adapters, "iter_factors", iterate)
        return load(type(request)(request.lora_name, request.lora_int_id, str(stale)))

    monkeypatch.setattr(adapter_engine._llm.llm_engine, "add_lora", load_the_old_factors)
    with pytest.raises(StaleWeightsError) as refused:
        adapter_engine.sync(trainer)
    assert refused.value.layers == ["model.layers.1.self_attn.q_proj"]


def test_a_base_of_another_checkpoint_is_refused_by_layer(adapter_engine, tied, monkeypatch):
    trainer = build_lora(build_model(tied=tied))
    trainer.base_model.model.model.layers[0].mlp.up_proj.weight.data.mul_(1.01)
    monkeypatch.setattr(adapter_engine._adapters, "_base_is_equal", False)  # as at the first sync
    with pytest.raises(StaleWeightsError) as refused:
        adapter_engine.sync(trainer)
    assert refused.value.layers == ["model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 12}, "has rank 12, the engine was started for ranks up to 8"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, "trained as a whole beside the adapter"),
    ],
)
def test_an_adapter_that_the_engine_cannot_take_is_named(adapter_engine, tied, options, message):
    with pytest.raises(ConfigError, match=message):
        adapter_engine.sync(build_lora(build_model(tied=tied), **options))


def test_rank_stabilised_scales_and_rank_patterns_arrive_exactly(adapter_engine, tied):
    trainer = build_lora(
        build_model(tied=tied), use_rslora=True, rank_pattern={"down_proj": 2}, alpha_pattern={"o_proj": 3}
    )
    assert adapter_engine.sync(trainer).max_gap < 1e-4
