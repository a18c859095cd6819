"""Resume, checkpoints that cannot be half-written, guards, and early stopping."""

import errno
import json

import pytest
import torch
from unlearn_tiny import FORGET, history, make_model, make_trainer

from negpo.errors import ConfigError, TrainingStopped
from negpo.trainers import OverUnlearningCallback, UtilityFloorCallback
from negpo.trainers._run.checkpoint import damage, last_complete

ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0, "lr_scheduler_type": "linear"}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("method", ["npo", "idkdpo"])
@pytest.mark.parametrize("stop_at", [3, 4])  # in the middle of an epoch (two steps each), and between two
def test_six_steps_equal_some_steps_and_a_resumed_rest(method, stop_at, tmp_path):
    settings = ADAM | {"max_steps": 6, "save_strategy": "steps", "save_steps": stop_at, "save_only_model": False}
    whole = make_trainer(method, tmp_path / "whole", **settings)
    whole.train()

    class Interrupt(UtilityFloorCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = True

    make_trainer(method, tmp_path / "parts", callbacks=[Interrupt(lambda model: 0, 0, every=99)], **settings).train()
    resumed = make_trainer(method, tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=True)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    for name in ("loss", "grad_norm", "forget/log_ratio", "retain/logp"):
        assert history(whole, name) == history(resumed, name)


def trained(tmp_path, **settings):
    defaults = ADAM | {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer("npo", tmp_path, **defaults | settings)
    trainer.train()
    return trainer


def test_resuming_a_finished_run_takes_no_further_step(tmp_path):
    trainer = trained(tmp_path)  # three steps of two to an epoch: the third is inside one
    again = make_trainer("npo", tmp_path, **ADAM, max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for name, value in weights(trainer).items():
        assert torch.equal(value, weights(again)[name]), name


def test_a_torn_checkpoint_is_passed_over_and_named(tmp_path):
    trained(tmp_path)
    with open(tmp_path / "checkpoint-3" / "model.safetensors", "r+b") as file:
        file.truncate(100)
    assert "model.safetensors" in damage(tmp_path / "checkpoint-3")
    assert last_complete(tmp_path) == tmp_path / "checkpoint-2"
    again = make_trainer("npo", tmp_path, **ADAM, max_steps=3)
    with pytest.raises(ConfigError, match=r"checkpoint-3: model.safetensors .* resume from .*checkpoint-2"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    trained(tmp_path)
    other = make_trainer("npo", tmp_path, train_dataset=FORGET[:5], **ADAM, max_steps=3)
    with pytest.raises(ConfigError, match="forget rows and reference differ"):
        other.train(resume_from_checkpoint=True)


def test_resuming_from_another_starting_model_is_refused(tmp_path):
    trained(tmp_path)
    other = make_trainer("npo", tmp_path, model=make_model(9), **ADAM, max_steps=3)
    with pytest.raises(ConfigError, match=r"reference differ.* \*starting\* model"):
        other.train(resume_from_checkpoint=True)


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no complete checkpoint-N"):
        make_trainer("ga", tmp_path).train(resume_from_checkpoint=True)


def test_a_full_disk_while_saving_a_checkpoint_leaves_only_complete_ones(tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full_disk(value, path, *args, **kwargs):
        calls.append(path)
        if "checkpoint-2" in str(path) and "optimizer" in str(path):
            with open(path, "wb") as file:
                file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(TrainingStopped, match=r"checkpoint-2 could not be written: .*No space left.*checkpoint-1"):
        trained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1"]
    assert damage(tmp_path / "checkpoint-1") is None


def test_a_full_disk_while_saving_the_final_model_keeps_the_previous_one(tmp_path, monkeypatch):
    trainer = trained(tmp_path, save_strategy="no")
    trainer.save_model()
    before = (tmp_path / "model.safetensors").read_bytes()

    def full_disk(folder, **kwargs):
        (tmp_path / ".saving").mkdir(exist_ok=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer.model, "save_pretrained", full_disk)
    with pytest.raises(TrainingStopped, match="No space left"):
        trainer.save_model()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".saving-*"))


def test_a_saved_model_loads_and_is_the_trained_one(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = trained(tmp_path, save_strategy="no")
    trainer.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("What?")["input_ids"] == trainer.processing_class("What?")["input_ids"]


def poison(trainer, step, row_with):
    """From optimiser step ``step`` on, the embedding of a token that only some rows contain is NaN."""
    token = trainer.processing_class.convert_tokens_to_ids(row_with)
    original = trainer.compute_loss

    def compute_loss(model, *args, **kwargs):
        if trainer.state.global_step >= step:
            with torch.no_grad():
                model.get_input_embeddings().weight[token] = float("nan")
        return original(model, *args, **kwargs)

    trainer.compute_loss = compute_loss


def test_a_non_finite_loss_names_the_row_and_stops_before_the_step(tmp_path):
    model = make_model(tie_word_embeddings=False)
    trainer = make_trainer("ga", tmp_path, model=model, batch=(6, 1), max_steps=5)
    poison(trainer, step=2, row_with="B")  # rows 0 (Blue) and 2 (Botany)
    with pytest.raises(
        TrainingStopped, match=r"the loss is nan at step 3, forget row\(s\) (0, 2|2, 0)\. The step was not taken"
    ):
        trainer.train()
    assert trainer.state.global_step == 2


def test_a_non_finite_gradient_stops_and_the_last_good_weights_are_saved(tmp_path):
    trainer = make_trainer("ga", tmp_path, max_steps=5)
    seen = {}
    step = trainer.training_step

    def training_step(model, *args, **kwargs):
        loss = step(model, *args, **kwargs)
        if trainer.state.global_step == 2:
            seen.update(weights(trainer))
            next(model.parameters()).grad[0, 0] = float("inf")
        return loss

    trainer.training_step = training_step
    with pytest.raises(TrainingStopped, match=r"the gradient is not finite at step 3.*last good checkpoint is .*-2"):
        trainer.train()
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    for name, value in saved.items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, seen[name])


def test_a_run_that_stops_writes_its_last_step_again_where_a_torn_checkpoint_stands(tmp_path):
    """A checkpoint torn while it was written, here by another hand, is not what a stopped run leaves behind."""
    trainer = make_trainer("ga", tmp_path, max_steps=5, save_strategy="steps", save_steps=1)
    step = trainer.training_step

    def training_step(model, *args, **kwargs):
        loss = step(model, *args, **kwargs)
        if trainer.state.global_step == 2:
            (tmp_path / "checkpoint-2" / "stray.bin").write_bytes(b"of an earlier run")
            (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
            next(model.parameters()).grad[0, 0] = float("inf")
        return loss

    trainer.training_step = training_step
    with pytest.raises(TrainingStopped, match=r"last good checkpoint is .*checkpoint-2"):
        trainer.train()
    assert damage(tmp_path / "checkpoint-2") is None
    assert not (tmp_path / "checkpoint-2" / "stray.bin").exists()


def test_the_utility_floor_stops_and_says_which_step_was_good(tmp_path):
    values = iter([0.9, 0.8, 0.4, 0.9])
    floor = UtilityFloorCallback(lambda model: next(values), 0.5, every=1)
    trainer = make_trainer("ga", tmp_path, max_steps=8, callbacks=[floor], save_strategy="steps", save_steps=100)
    trainer.train()
    assert trainer.state.global_step == 3
    assert floor.last_good_step == 2
    assert "0.4 < 0.5 at step 3; step 2 was above" in floor.reason
    assert history(trainer, "guard/utility") == [0.9, 0.8, 0.4]
    assert damage(tmp_path / "checkpoint-2") is None


def test_over_unlearning_stops_gradient_ascent(tmp_path):
    guard = OverUnlearningCallback(patience=2)
    trainer = make_trainer("ga", tmp_path, max_steps=60, learning_rate=0.05, callbacks=[guard])
    trainer.train()
    logps = history(trainer, "forget/logp")
    assert trainer.state.global_step < 60
    assert logps[-1] < guard.floor
    assert guard.reason.startswith("mean log-prob of the forget tokens")


def test_the_seal_lists_every_file(tmp_path):
    trained(tmp_path)
    listed = json.loads((tmp_path / "checkpoint-1" / "negpo_checkpoint.json").read_text())["files"]
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"} <= set(listed)
