"""Runs that would lie about themselves: broken weights, another run's checkpoint, a folder that another run writes."""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from preference_tiny import make_trainer as make_preference
from rl_tiny import make_policy_trainer
from transformers import TrainerCallback
from unlearn_tiny import make_trainer

from negpo.errors import ConfigError, TrainingStopped
from negpo.trainers import METHODS
from negpo.trainers._run import checkpoint
from negpo.trainers._run.folder_lock import LOCK, acquire
from negpo.trainers._run.identity import NEUTRAL, settings_of

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
MAKERS = {
    "npo": lambda folder, **s: make_trainer("npo", folder, **SAVING | s),
    "dpo": lambda folder, **s: make_preference("dpo", folder, **SAVING | s),
    "nsr": lambda folder, **s: make_policy_trainer("nsr", folder, **SAVING | {"learning_rate": 1e-3} | s),
}


class Destroy(TrainerCallback):
    """Puts a NaN into a weight right after the optimiser's step number ``step``, as a bad kernel or memory would."""

    def __init__(self, step):
        self.step = step

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step - 1:
            with torch.no_grad():
                next(model.parameters())[0, 0] = float("nan")


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MAKERS)
@pytest.mark.parametrize("step", [3, 4])
def test_broken_weights_are_never_sealed_and_the_good_checkpoint_is_named(method, step, tmp_path):
    """At step 4 they are broken by the very last step."""
    trainer = MAKERS[method](tmp_path, callbacks=[Destroy(step)], save_total_limit=1)
    with pytest.raises(TrainingStopped, match=rf"weights are not finite \(.*embed.*checkpoint-{step - 1}\b"):
        trainer.train()
    assert checkpoint.last_complete(tmp_path).name == f"checkpoint-{step - 1}"
    resumed = MAKERS[method](tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


@pytest.mark.parametrize("method", MAKERS)
def test_a_run_without_checkpoints_does_not_end_well_with_broken_weights(method, tmp_path):
    trainer = MAKERS[method](tmp_path, callbacks=[Destroy(4)], save_strategy="no")
    with pytest.raises(TrainingStopped, match="there is no checkpoint from before"):
        trainer.train()


def test_rotation_keeps_the_checkpoint_before_until_a_step_was_taken_from_the_newest(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))

    make_trainer("ga", tmp_path, callbacks=[Look()], save_total_limit=1, **SAVING).train()
    assert seen[1:] == [
        ["checkpoint-1", "checkpoint-2"],
        ["checkpoint-2", "checkpoint-3"],
        ["checkpoint-3", "checkpoint-4"],
    ]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_reward_that_fails_late_ends_the_run_with_its_finished_steps(tmp_path):
    calls = []

    def failing(prompts, completions, **_):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("no such gold")
        return [float("+" in text) for text in completions]

    trainer = MAKERS["nsr"](tmp_path, reward=failing, save_strategy="no")
    with pytest.raises(TrainingStopped, match=r"no such gold.*last good checkpoint is .*checkpoint-2"):
        trainer.train()
    resumed = MAKERS["nsr"](tmp_path, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


# ---- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [("ga", "catnip"), ("ga", "simnpo"), ("simpo", "redi"), ("nsr", "grpo"), ("nsr", "topr"), ("nsr", "raft")],
)
def test_a_checkpoint_of_one_method_is_not_resumed_by_another(first, second, tmp_path):
    make = make_policy_trainer if first == "nsr" else make_preference if first == "simpo" else make_trainer
    settings = SAVING | {"max_steps": 1, "learning_rate": 1e-3}
    make(first, tmp_path, **settings).train()
    with pytest.raises(ConfigError, match=r"method|then, .* now"):
        make(second, tmp_path, **settings | {"max_steps": 2}).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("npo", {"beta": 0.5}),
        ("npo", {"optim": "adamw_torch"}),
        ("npo", {"learning_rate": 2e-2}),
        ("npo", {"token_normalization": "micro_batch"}),
        ("dpo", {"beta": 0.5}),
        ("nsr", {"preset": "psr"}),
        ("nsr", {"temperature": 0.5}),
        ("nsr", {"entropy_coef": 0.1}),
        ("nsr", {"truncated": "wrong"}),
    ],
)
def test_a_setting_of_the_objective_that_changed_is_named_with_both_values_unless_it_was_said(method, change, tmp_path):
    MAKERS[method](tmp_path, max_steps=1).train()
    name, value = next(iter(change.items()))
    with pytest.raises(ConfigError, match=rf"\b{name}: .* then, {value} now"):
        MAKERS[method](tmp_path, **change).train(resume_from_checkpoint=True)
    if name in ("beta", "temperature", "truncated"):
        resumed = MAKERS[method](tmp_path, **change, changed_on_resume=[name])
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 4


def test_a_reference_that_was_added_is_a_changed_setting_and_not_a_missing_column(tmp_path):
    from unlearn_tiny import make_model

    make_model().save_pretrained(tmp_path / "start")
    common = {"model": str(tmp_path / "start"), "updates_per_rollout": 2}
    MAKERS["nsr"](tmp_path / "run", max_steps=1, **common).train()
    with pytest.raises(ConfigError, match=r"beta: 0.0 then, 0.1 now"):
        MAKERS["nsr"](tmp_path / "run", beta=0.1, **common).train(resume_from_checkpoint=True)


def test_a_name_in_changed_on_resume_must_be_one_that_counts(tmp_path):
    MAKERS["npo"](tmp_path, max_steps=1).train()
    with pytest.raises(ConfigError, match="changed_on_resume names bta"):
        MAKERS["npo"](tmp_path, changed_on_resume=["bta"]).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("method", MAKERS)
def test_a_checkpoint_without_its_optimiser_is_not_resumed(method, tmp_path):
    MAKERS[method](tmp_path, max_steps=1, save_only_model=True).train()
    with pytest.raises(ConfigError, match=r"without the state of the optimiser \(save_only_model=true\)"):
        MAKERS[method](tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_method_is_part_of_its_identity_or_listed_as_neutral(method, tmp_path):
    from importlib import import_module

    module, _, name = METHODS[method]
    args = getattr(import_module(module), name)(output_dir=str(tmp_path), use_cpu=True)
    settings = settings_of(args)
    assert json.loads(json.dumps(settings)) == settings
    assert {"learning_rate", "optim", "weight_decay"} <= set(settings)
    own = set(vars(type(args)).get("__annotations__", {})) - {"choices", "inherited", "script_arguments"}
    assert {field for field in own if not field.startswith("_")} <= set(settings) | NEUTRAL


# ---- the output folder -----------------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(tmp_path):
    code = "import sys; from pathlib import Path; from negpo.trainers._run.folder_lock import acquire\n"
    code += "assert acquire(Path(sys.argv[1])) is None; print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / LOCK)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"another run writes into output_dir .*process {holder.pid} on"):
            make_trainer("ga", tmp_path, max_steps=1).train()
    finally:
        holder.kill()
        holder.communicate()
    make_trainer("ga", tmp_path, max_steps=1).train()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_on_another_host_counts_while_it_shows_signs_of_life(tmp_path, caplog):
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "born": 1.0}))
    assert "process 1 on elsewhere" in acquire(path)
    os.utime(path, (0, 0))
    with caplog.at_level(logging.WARNING):
        assert acquire(path) is None
    assert "taking over" in caplog.text


def test_the_lock_is_released_when_a_run_fails(tmp_path):
    trainer = MAKERS["npo"](tmp_path, callbacks=[Destroy(2)])
    with pytest.raises(TrainingStopped):
        trainer.train()
    assert not (tmp_path / LOCK).exists()
