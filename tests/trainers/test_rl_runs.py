"""Whole runs: interrupted and resumed, on two processes, stopped by a watchdog, against TRL's own trainer."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rl_tiny import PROMPTS, ScriptedEngine, history, make_policy_trainer, plus_reward, weights
from safetensors.torch import load_file
from transformers import TrainerCallback
from unlearn_tiny import make_model, make_tokenizer

from negpo.errors import ConfigError, TrainingStopped

# a random model does not end its answers within a few tokens: they count as wrong
SAMPLED = {"engine": None, "max_completion_length": 5, "learning_rate": 0.05, "truncated": "wrong"}


def letters_reward(prompts, completions, **_):
    """Half of what a random model writes is right."""
    return [float(sum(character.isalpha() for character in text) % 2 == 0) for text in completions]


class Interrupt(TrainerCallback):
    """Ends the process's training after a step, like a kill after the checkpoint was written."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("nsr", {}),
        ("grpo", {"dead_groups": "resample", "num_iterations": 2}),
        ("resrl", {"optim": "adamw_torch"}),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits_wherever_it_was_cut(tmp_path, method, settings):
    """Three steps per rollout, two epochs of data: cuts fall inside and between rollouts and epochs."""
    common = SAMPLED | {"reward": letters_reward, "updates_per_rollout": 3, "max_steps": 8, "shuffle_dataset": True}
    common |= {"data": PROMPTS[:6], "save_strategy": "steps", "save_steps": 1, "batch": (2, 2)} | settings
    whole = make_policy_trainer(method, tmp_path / "whole", **common | {"save_strategy": "no"})
    whole.train()
    for cut in (2, 3, 7):
        folder = tmp_path / f"cut{cut}"
        make_policy_trainer(method, folder, callbacks=[Interrupt(cut)], **common).train()
        resumed = make_policy_trainer(method, folder, **common)
        resumed.train(resume_from_checkpoint=True)
        assert torch.equal(weights(resumed), weights(whole)), f"cut after step {cut}"
        for name in ("loss", "reward", "positive/logp", "negative/logp", "displacement/correct"):
            assert history(resumed, name) == history(whole, name), f"{name}, cut after step {cut}"


def test_resuming_a_finished_run_takes_no_further_step(tmp_path):
    common = SAMPLED | {"reward": letters_reward, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    finished = make_policy_trainer("nsr", tmp_path, **common)
    finished.train()
    again = make_policy_trainer("nsr", tmp_path, **common)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert torch.equal(weights(again), weights(finished))


def test_resuming_with_other_data_or_another_batch_layout_is_refused(tmp_path):
    common = SAMPLED | {"reward": letters_reward, "save_strategy": "steps", "save_steps": 1}
    make_policy_trainer("nsr", tmp_path, **common).train()
    with pytest.raises(ConfigError, match="batch layout"):
        make_policy_trainer("nsr", tmp_path, updates_per_rollout=2, **common).train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="training rows"):
        make_policy_trainer("nsr", tmp_path, data=PROMPTS[1:], **common).train(resume_from_checkpoint=True)


def test_a_full_disk_while_saving_the_final_model_keeps_the_previous_one(tmp_path, monkeypatch):
    trainer = make_policy_trainer("nsr", tmp_path)
    trainer.save_model()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(folder, **kwargs):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.model, "save_pretrained", full_disk)
    with pytest.raises(TrainingStopped, match="No space left"):
        trainer.save_model()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_processes_train_like_one(tmp_path):
    """gloo, sampled rollouts; NSR leaves the processes with different numbers of live rows."""
    common = {
        "max_completion_length": 5,
        "learning_rate": 0.05,
        "updates_per_rollout": 2,
        "max_steps": 4,
        "truncated": "wrong",
    }
    runs = {"nsr": common, "grpo": common | {"normalizer": "sequence_mean", "dead_groups": "resample"}}
    found = []
    for processes, batch in ((1, (8, 1)), (2, (2, 2))):
        folder = tmp_path / str(processes)
        folder.mkdir()
        settings = {method: own | {"batch": batch} for method, own in runs.items()}
        launch(processes, folder, settings)
        found.append((load_file(folder / "weights.safetensors"), json.loads((folder / "logs.json").read_text())))
    (one, one_logs), (two, two_logs) = found
    assert one_logs == two_logs
    for method in runs:
        assert (one[method] - two[method]).abs().max() < 2e-6, method


def launch(processes: int, folder: Path, settings: dict) -> None:
    here = Path(__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(here)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(here / "rl_two_ranks.py"), str(folder), json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_step_equals_trls_own_given_the_same_completions(tmp_path):
    """TRL's dapo loss is the token mean over the rollout batch; its advantages use std + 1e-4."""
    from trl import GRPOConfig, GRPOTrainer

    engine = ScriptedEngine()

    class Scripted(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            keys = [f"0:{i}" for i in range(len(prompt_ids) // 4)]
            from negpo.rollout import Sampling

            groups = engine.generate(prompt_ids[::4], Sampling(n=4), prompt_keys=keys)
            return [sample.token_ids for group in groups for sample in group], None

    ours = make_policy_trainer("grpo", tmp_path / "ours", batch=(4, 4), advantage_eps=1e-4)
    settings = {name: getattr(ours.args, name) for name in ("learning_rate", "optim", "max_grad_norm", "max_steps")}
    settings |= {"lr_scheduler_type": "constant", "report_to": "none", "use_cpu": True, "bf16": False}
    theirs = Scripted(
        model=make_model(),
        reward_funcs=plus_reward,
        args=GRPOConfig(
            output_dir=str(tmp_path / "theirs"),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_generations=4,
            max_completion_length=8,
            shuffle_dataset=False,
            save_strategy="no",
            gradient_checkpointing=False,
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=ours.train_dataset,
        processing_class=make_tokenizer(),
    )
    start = weights(ours)
    ours.train()
    theirs.train()
    assert (weights(ours) - start).abs().max() > 1e-3
    assert (weights(ours) - weights(theirs)).abs().max() < 2e-6


def test_rewarded_letters_become_more_frequent(tmp_path):
    """The toy task is learnt: W-REINFORCE raises the share of completions that start with a vowel."""

    def vowel(prompts, completions, **_):
        return [float(text[:1].lower() in tuple("aeiou0123456789")) for text in completions]

    trainer = make_policy_trainer(
        "grpo", tmp_path, **SAMPLED | {"max_completion_length": 1, "learning_rate": 5e-3}, reward=vowel, batch=(32, 1),
        num_generations=8, max_steps=40, optim="adamw_torch", updates_per_rollout=2, data=PROMPTS * 2,
    )  # fmt: skip
    trainer.train()
    rewards = history(trainer, "reward")
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2


# ---- watchdogs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "reason", "kept"),
    [
        ({"min_entropy": 100.0}, "entropy collapsed", 2),
        # the first update of a rollout has not left its policy
        ({"max_kl": 0.0, "updates_per_rollout": 4, "preset": "w_reinforce"}, "left the rollout policy", 3),
    ],
)
def test_a_watchdog_stops_with_a_reason_and_a_usable_checkpoint(tmp_path, limit, reason, kept):
    trainer = make_policy_trainer("nsr", tmp_path, max_steps=9, watchdog_patience=3, learning_rate=0.01, **limit)
    with pytest.raises(TrainingStopped, match=f"{reason}.*3 steps in a row.*checkpoint-{kept}"):
        trainer.train()
    again = {name: value for name, value in limit.items() if name not in ("max_kl", "min_entropy")}
    resumed = make_policy_trainer("nsr", tmp_path, max_steps=kept + 1, learning_rate=0.01, **again)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == kept + 1


def test_a_model_that_loops_is_stopped(tmp_path):
    loops = ScriptedEngine([("ab" * 30, "+" * 60, "x" * 50, "yz" * 25)])
    trainer = make_policy_trainer(
        "nsr", tmp_path, engine=loops, max_completion_length=64, max_steps=9, watchdog_patience=2, learning_rate=1e-4
    )
    with pytest.raises(TrainingStopped, match=r"repeat themselves: 1 against the limit 0\.5"):
        trainer.train()


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path):
    def broken(logps, old_logps, advantages, mask):
        return logps.sum() * (math.nan if len(calls) == 2 else 1.0)

    calls = []

    def advantages(rewards, groups):
        calls.append(1)
        return rewards - 0.5

    from negpo.trainers import PolicyTrainer

    trainer = make_policy_trainer(
        PolicyTrainer, tmp_path, advantages=advantages, loss=broken, max_steps=4, learning_rate=1e-3
    )
    with pytest.raises(TrainingStopped, match=r"not finite, at step 2.*checkpoint-1"):
        trainer.train()
    assert weights(trainer).isfinite().all()


def test_entropy_that_is_high_from_the_start_is_no_explosion():
    from negpo.trainers._policy.watchdog import Watchdog

    limits = {"min_entropy": None, "max_entropy_share": 0.7, "max_repetition": None, "max_kl": None, "patience": 1}
    undecided = Watchdog(vocabulary=100, **limits)
    assert undecided.check(4.5, None, None) is None
    assert undecided.check(4.6, None, None) is None
    sure = Watchdog(vocabulary=100, **limits)
    assert sure.check(0.5, None, None) is None
    assert "entropy exploded" in sure.check(4.0, None, None)
