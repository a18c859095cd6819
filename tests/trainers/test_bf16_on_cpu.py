"""``--bf16 true`` on a machine without a GPU trains under autocast; nothing has to be said about the CPU."""

import math

import preference_tiny
import pytest
import rl_tiny
import torch
import unlearn_tiny

from negpo.errors import ConfigError
from negpo.methods import TABLE
from negpo.trainers.npo import NPOConfig

MAKERS = {
    "unlearn": unlearn_tiny.make_trainer,
    "preference": preference_tiny.make_trainer,
    "policy": rl_tiny.make_policy_trainer,
}
STEPS = {"prompt": "2 + 2? ", "chosen": "It is 4.", "steps": ["It is ", "5."], "values": [0.6, 0.1]}
NEEDS = {
    "rmu": {"layer": 1},
    "d2o": {"max_new_tokens": 4},
    "pdu": {"retain_constraint": 5.0},
    "step_dpo": {"train_dataset": [STEPS] * 4},
}
pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")


@pytest.mark.parametrize("method", sorted(TABLE))
def test_one_step_in_bfloat16(method, tmp_path):
    make = MAKERS[TABLE[method].family]
    trainer = make(method, tmp_path, batch=(4, 1), bf16=True, use_cpu=False, max_steps=1, **NEEDS.get(method, {}))
    assert trainer.args.use_cpu
    assert trainer.accelerator.mixed_precision == "bf16"
    seen = []
    hook = trainer.model.get_output_embeddings().register_forward_pre_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
    )
    trainer.train()
    hook.remove()
    assert torch.bfloat16 in seen or method == "rmu"  # RMU stops at a hidden layer
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_float16_on_a_cpu_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        NPOConfig(output_dir=str(tmp_path), fp16=True)


def test_bfloat16_under_deepspeed_on_a_cpu_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="bf16 under DeepSpeed"):
        NPOConfig(output_dir=str(tmp_path), bf16=True)
