"""Policy trainers whose completions come from a real vLLM engine, where one is installed."""

import importlib.util

import pytest
import torch
from rl_tiny import history, make_policy_trainer
from unlearn_tiny import make_model

from negpo.rollout.adapters import active_adapter

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

ENGINE = {"max_model_len": 128, "cache_gib": 0.25}


def wide_model():
    """Heads of width 32: the narrowest that vLLM's CPU attention has."""
    return make_model(hidden_size=128, intermediate_size=96, initializer_range=0.1)


@pytest.fixture
def train(tmp_path):
    engines = []

    def run(**settings):
        trainer = make_policy_trainer(
            "nsr",
            tmp_path,
            model=wide_model(),
            engine=None,
            max_steps=3,
            learning_rate=1e-2,
            **{"engine_options": ENGINE} | settings,
        )
        trainer.args.engine = "vllm"
        engines.append(trainer)
        trainer.train()
        return trainer

    yield run
    for trainer in engines:
        trainer.source.close()


@pytest.mark.parametrize("how", ["adapter", "merge"])
def test_lora_trains_with_vllm_rollouts_and_every_sync_is_proven(train, how):
    from peft import LoraConfig

    trainer = train(adapter_sync=how, peft_config=LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    assert active_adapter(trainer.model) == "default"
    assert max(history(trainer, "sync/max_gap")) < 1e-4
    factors = 4 * sum(p.numel() for name, p in trainer.model.named_parameters() if "lora" in name)
    everything = 4 * sum(p.numel() for name, p in trainer.model.named_parameters() if "lora" not in name)
    sent = trainer.source.last_sync.bytes_sent
    assert (sent < factors + 10_000) if how == "adapter" else (sent == everything)


def test_the_engine_computes_in_the_dtype_of_the_training(train):
    assert train(bf16=True).source.engine.dtype == torch.bfloat16
