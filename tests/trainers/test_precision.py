"""Float32 weights whatever is stored, bfloat16 ones only when asked, and how much of their updates arrives."""

import pytest
import torch
from preference_tiny import make_trainer as make_preference
from rl_tiny import make_policy_trainer
from transformers import AutoModelForCausalLM
from unlearn_tiny import history, make_model, make_tokenizer, make_trainer

from negpo.errors import ConfigError
from negpo.trainers._run.adamw import RoundedAdamW, round_stochastically
from negpo.trainers._run.model import starts_without_adapter

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-5, "max_steps": 3, "per_device_train_batch_size": 2}
MAKERS = {
    "npo": lambda folder, **s: make_trainer("npo", folder, **ADAM | s),
    "dpo": lambda folder, **s: make_preference("dpo", folder, **ADAM | s),
    "nsr": lambda folder, **s: make_policy_trainer("nsr", folder, **ADAM | {"per_device_train_batch_size": 4} | s),
}


def vector(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def stored(folder, dtype):
    path = folder / f"stored-{dtype}".replace("torch.", "")
    make_model(dtype=dtype).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("method", MAKERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_half_precision_is_trained_in_float32(method, dtype, tmp_path):
    path = stored(tmp_path, dtype)
    for model in (path, AutoModelForCausalLM.from_pretrained(path, dtype=dtype)):
        wide = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        trainer = MAKERS[method](tmp_path / "run", model=model)
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        before = vector(trainer.model)
        trainer.train()
        same = MAKERS[method](tmp_path / "same", model=wide)
        same.train()
        assert torch.equal(vector(trainer.model), vector(same.model))
        assert (vector(trainer.model) != before).double().mean() > 0.4
        assert not history(trainer, "update/kept")


@pytest.mark.parametrize("method", MAKERS)
def test_bfloat16_weights_lose_small_updates_unless_rounded_otherwise(method, tmp_path, caplog):
    kept = {}
    for rounding in ("nearest", "stochastic", "kahan"):
        caplog.clear()
        trainer = MAKERS[method](
            tmp_path / rounding, model=make_model(), weights_dtype="bfloat16", bf16_rounding=rounding
        )
        assert {p.dtype for p in trainer.model.parameters()} == {torch.bfloat16}
        trainer.train()
        kept[rounding] = history(trainer, "update/kept")[0]
        assert ("rounds away" in caplog.text) == (rounding == "nearest" or kept[rounding] < 0.9)
    assert kept["nearest"] < 0.5
    assert kept["stochastic"] == pytest.approx(1, abs=0.35)


def test_the_optimiser_is_adamw_in_float32():
    torch.manual_seed(0)
    first, start = torch.nn.Linear(5, 3), None
    second = torch.nn.Linear(5, 3)
    second.load_state_dict(first.state_dict())
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    ours, theirs = RoundedAdamW(first.parameters(), **settings), torch.optim.AdamW(second.parameters(), **settings)
    for _ in range(5):
        for model, optimizer in ((first, ours), (second, theirs)):
            optimizer.zero_grad()
            model(torch.ones(2, 5)).pow(2).sum().backward()
            optimizer.step()
    assert start is None
    for ours_p, theirs_p in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(ours_p, theirs_p, atol=1e-6)
    assert ours.drain() == pytest.approx(1, abs=1e-3)
    assert ours.drain() is None


def test_stochastic_rounding_is_right_on_average_and_repeats_itself():
    value = torch.full((20_000,), 1.0 + 1 / 512)  # between 1 and 1 + 1/128
    rounded = round_stochastically(value, 3)
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 1 / 128}
    assert rounded.double().mean().item() == pytest.approx(1.0 + 1 / 512, abs=2e-4)
    assert torch.equal(rounded, round_stochastically(value, 3))
    assert not torch.equal(rounded, round_stochastically(value, 4))
    odd = round_stochastically(torch.tensor([float("inf"), float("nan"), -1.0]), 0)
    assert odd[0] == float("inf")
    assert odd[1].isnan()
    assert odd[2] == -1


def test_kahan_summation_loses_nothing_over_many_steps():
    """1000 steps of 1e-4 from 1: nearest stays at 1, the compensated weight follows to within one bfloat16 step."""
    ends = {}
    for rounding in ("nearest", "kahan"):
        weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = RoundedAdamW([weight], lr=1e-4, rounding=rounding)
        for _ in range(1000):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        ends[rounding] = weight.float().mean().item()
    assert ends["nearest"] == 1.0
    assert ends["kahan"] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bf16_rounding": "stochastic"}, "bf16_rounding=stochastic would have no effect"),
        ({"weights_dtype": "bfloat16", "optim": "sgd"}, "weights_dtype=bfloat16 with optim=sgd"),
        ({"weights_dtype": "float16"}, "weights_dtype is 'float16'"),
        ({"model_init_kwargs": {"dtype": "float16"}}, "dtype=float16"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "contradicts weights_dtype=float32"),
    ],
)
@pytest.mark.parametrize("method", MAKERS)
def test_contradictions_of_precision_are_named(method, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        MAKERS[method](tmp_path / "run", model=stored(tmp_path, torch.float32), **settings)


# ---- adapters --------------------------------------------------------------------------------------------------------


def adapter(folder, seed=3):
    from peft import LoraConfig, get_peft_model

    base = folder / "base"
    make_model().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    model.save_pretrained(folder / "adapter")
    return str(folder / "adapter"), model


@pytest.mark.parametrize("method", MAKERS)
def test_the_folder_of_an_adapter_is_trained_further(method, tmp_path):
    folder, model = adapter(tmp_path)
    trainer = MAKERS[method](tmp_path / "run", model=folder, gradient_checkpointing=False)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    ours = dict(trainer.model.named_parameters())
    for name, parameter in model.named_parameters():
        if "lora" in name:
            assert torch.equal(ours[name].detach(), parameter.detach())
    assert not starts_without_adapter(trainer.model)


def test_a_new_adapter_is_stacked_on_the_merged_old_one(tmp_path):
    from peft import LoraConfig

    folder, model = adapter(tmp_path)
    config = LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer("simnpo", tmp_path / "run", model=folder, peft_config=config)
    ids = torch.arange(8).unsqueeze(0)
    assert torch.allclose(trainer.model(ids).logits, model(ids).logits, atol=1e-5)
    assert starts_without_adapter(trainer.model)


@pytest.mark.parametrize("method", ["graddiff", "npo"])
def test_the_reference_of_a_trained_adapter_keeps_it(method, tmp_path):
    _, model = adapter(tmp_path)
    trainer = make_trainer(method, tmp_path / "run", model=model, retain_loss="kl", max_steps=1)
    trainer.train()
    assert history(trainer, "retain/loss") == [pytest.approx(0, abs=1e-6)]
    _, model = adapter(tmp_path)
    trainer = make_trainer(method, tmp_path / "other", model=model, retain_loss="kl", reference="adapters_off")
    with pytest.raises(ConfigError, match="reference=adapters_off: the adapter is trained already"):
        trainer.train()


def test_a_frozen_adapter_is_named_not_a_gradient_error(tmp_path):
    from peft import PeftModel

    folder, _ = adapter(tmp_path)
    frozen = PeftModel.from_pretrained(make_model(), folder)
    with pytest.raises(ConfigError, match="is_trainable=True"):
        make_trainer("simnpo", tmp_path / "run", model=frozen)
