"""Mixtures of experts: trained through their log-probs in every family; a load-balancing loss is refused by name."""

import math

import pytest
import torch
from preference_tiny import make_trainer as make_preference
from rl_tiny import history, make_policy_trainer, weights
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from unlearn_tiny import make_trainer

from negpo.errors import ConfigError

MAKERS = {
    "npo": lambda folder, model: make_trainer("npo", folder, model=model, max_steps=2),
    "dpo": lambda folder, model: make_preference("dpo", folder, model=model, max_steps=2),
    "nsr": lambda folder, model: make_policy_trainer("nsr", folder, model=model, max_steps=2, learning_rate=1e-2),
}


def experts(**settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2, pad_token_id=1, **settings)
    return Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize("method", MAKERS)
def test_experts_and_routers_are_trained(method, tmp_path):
    trainer = MAKERS[method](tmp_path, experts())
    before = weights(trainer)
    routers = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if "gate.weight" in name}
    trainer.train()
    assert all(math.isfinite(loss) for loss in history(trainer, "loss"))
    assert (weights(trainer) != before).any()
    assert routers
    assert any(not torch.equal(dict(trainer.model.named_parameters())[name], old) for name, old in routers.items())


@pytest.mark.parametrize("method", MAKERS)
def test_a_load_balancing_loss_is_refused(method, tmp_path):
    with pytest.raises(ConfigError, match="output_router_logits is on"):
        MAKERS[method](tmp_path, experts(output_router_logits=True))


def test_sampled_rollouts_of_experts_are_those_that_are_scored(tmp_path):
    trainer = make_policy_trainer(
        "nsr", tmp_path, model=experts(), engine=None, max_completion_length=5, truncated="wrong", learning_rate=1e-3
    )
    trainer.train()
    assert history(trainer, "mismatch/max")[0] < 1e-4
