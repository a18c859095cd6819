"""SIGTERM, hangs, damaged checkpoints, retention, dead engines: what a run says and what can be resumed."""

import os
import signal
import threading
import traceback

import pytest
import torch
from rl_tiny import ScriptedEngine, make_policy_trainer
from rl_tiny import weights as policy_weights
from transformers import TrainerCallback
from unlearn_tiny import make_trainer

from negpo import cli
from negpo.errors import ConfigError, TrainingInterrupted, TrainingStopped
from negpo.trainers._run import checkpoint, hang_watch

STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"}


class AtStep(TrainerCallback):
    """Does something at the beginning of an optimiser step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def sigterm():
    os.kill(os.getpid(), signal.SIGTERM)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


# ---- SIGTERM --------------------------------------------------------------------------------------------------------


def test_sigterm_finishes_the_step_saves_and_a_resumed_run_ends_with_the_same_bits(tmp_path):
    settings = STEPS | {"save_strategy": "no"}
    whole = make_trainer("npo", tmp_path / "whole", **settings)
    whole.train()
    cut = make_trainer("npo", tmp_path / "cut", callbacks=[AtStep(1, sigterm)], **settings)
    with pytest.raises(TrainingInterrupted, match=r"stopped after step 2, saved as .*checkpoint-2\. Go on"):
        cut.train()
    resumed = make_trainer("npo", tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(whole))


def test_sigterm_inside_a_rollout_of_a_policy_method_resumes_exactly_too(tmp_path):
    settings = {"max_steps": 4, "updates_per_rollout": 2, "engine": None, "learning_rate": 0.05}
    whole = make_policy_trainer("nsr", tmp_path / "whole", **settings)
    whole.train()
    cut = make_policy_trainer("nsr", tmp_path / "cut", callbacks=[AtStep(0, sigterm)], **settings)
    with pytest.raises(TrainingInterrupted, match="checkpoint-1"):
        cut.train()
    resumed = make_policy_trainer("nsr", tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(policy_weights(resumed), policy_weights(whole))


def test_after_training_sigterm_does_what_it_did_before(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    make_trainer("ga", tmp_path, max_steps=1).train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_training_in_another_thread_leaves_signals_alone(tmp_path):
    trainer, failed = make_trainer("ga", tmp_path, max_steps=1), []

    def train():
        try:
            trainer.train()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failed
    assert trainer.state.global_step == 1


def test_the_command_line_exits_with_143_after_sigterm(monkeypatch, capsys):
    def interrupted(args, extra):
        raise TrainingInterrupted("SIGTERM: stopped after step 2")

    monkeypatch.setattr(cli.doctor, "run", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor"])
    assert stopped.value.code == 143
    assert "stopped after step 2" in capsys.readouterr().err


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def test_with_a_limit_of_one_a_complete_checkpoint_exists_at_every_moment(tmp_path, monkeypatch):
    complete, rmtree = [], checkpoint.shutil.rmtree

    def look(path, **kwargs):
        if path.name.startswith("checkpoint-"):
            complete.append(checkpoint.last_complete(tmp_path).name)
        rmtree(path, **kwargs)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", look)
    trainer = make_trainer("ga", tmp_path, save_total_limit=1, **STEPS)
    trainer.train()
    assert complete == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]  # when the one before was deleted
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert trainer.args.save_total_limit == 1


def test_a_flipped_byte_makes_a_checkpoint_one_to_pass_over(tmp_path, caplog):
    make_trainer("ga", tmp_path, **STEPS).train()
    path = tmp_path / "checkpoint-4" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert checkpoint.last_complete(tmp_path) == tmp_path / "checkpoint-3"
    assert "model.safetensors was changed after it was written" in caplog.text


def test_the_checksum_of_a_large_file_reads_its_end_and_a_bounded_share(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "BLOCK", 16)
    monkeypatch.setattr(checkpoint, "SAMPLES", 4)
    path = tmp_path / "large"
    data = bytearray(range(256)) * 4
    path.write_bytes(data)
    before = checkpoint.checksum(path)
    data[-1] ^= 1
    path.write_bytes(data)
    assert checkpoint.checksum(path) != before
    data[-1] ^= 1
    data[100] ^= 1  # between two blocks: the price of not reading everything
    path.write_bytes(data)
    assert checkpoint.checksum(path) == before


def test_auto_resumes_where_there_is_a_checkpoint_and_starts_where_there_is_none(tmp_path):
    make_trainer("ga", tmp_path, **STEPS).train(resume_from_checkpoint="auto")
    again = make_trainer("ga", tmp_path, **STEPS | {"max_steps": 5})
    again.train(resume_from_checkpoint="auto")
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [1, 2, 3, 4, 5]


def test_steps_of_another_size_are_refused_on_resume_with_both_numbers(tmp_path):
    make_trainer("ga", tmp_path, batch=(2, 1), **STEPS).train()
    with pytest.raises(ConfigError, match="rows per step: 2 then, 1 now"):
        make_trainer("ga", tmp_path, batch=(1, 1), **STEPS).train(resume_from_checkpoint=True)
    other_split = make_trainer("ga", tmp_path, batch=(1, 2), **STEPS | {"max_steps": 5})
    other_split.train(resume_from_checkpoint=True)
    assert other_split.state.global_step == 5


def test_a_policy_run_cannot_be_resumed_on_another_number_of_processes(tmp_path):
    common = {"save_strategy": "steps", "save_steps": 1}
    make_policy_trainer("nsr", tmp_path, **common).train()
    other = make_policy_trainer("nsr", tmp_path, **common)
    saved = checkpoint.provenance(tmp_path / "checkpoint-1")
    assert saved["number of processes"] == other.args.world_size == 1


def test_a_full_disk_during_a_policy_checkpoint_is_explained_and_leaves_whole_ones(tmp_path, monkeypatch):
    from negpo.trainers._policy import state

    save = state.save_state

    def full(folder, *arguments):
        if folder.name == "checkpoint-2":
            raise OSError(28, "No space left on device")
        save(folder, *arguments)

    monkeypatch.setattr(state, "save_state", full)
    trainer = make_policy_trainer("nsr", tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    with pytest.raises(TrainingStopped, match=r"checkpoint-2 could not be written: .*No space left.*checkpoint-1"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


# ---- engines --------------------------------------------------------------------------------------------------------


def test_an_engine_that_dies_in_a_rollout_ends_the_run_with_the_way_to_go_on(tmp_path):
    class Dying(ScriptedEngine):
        def generate(self, *arguments, **named):
            if len(self.calls) == 2:
                raise ConnectionResetError("connection reset by peer")
            return super().generate(*arguments, **named)

    common = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.05}
    whole = make_policy_trainer("nsr", tmp_path / "whole", **common)
    whole.train()
    with pytest.raises(TrainingStopped, match=r"after step 2: ConnectionResetError.*resume from .*checkpoint-2"):
        make_policy_trainer("nsr", tmp_path / "cut", engine=Dying(), **common).train()
    resumed = make_policy_trainer("nsr", tmp_path / "cut", **common)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(policy_weights(resumed), policy_weights(whole))


# ---- hangs ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the stand-in for os._exit
def test_a_run_without_progress_writes_its_stack_and_ends(tmp_path, monkeypatch, capfd):
    ended = threading.Event()

    def exit_now(status):
        assert status == 124
        ended.set()
        raise SystemExit

    monkeypatch.setattr(hang_watch.os, "_exit", exit_now)
    stuck = AtStep(1, lambda: ended.wait(30))
    make_trainer("ga", tmp_path, callbacks=[stuck], max_steps=2, hang_timeout=0.5).train()
    assert ended.is_set()
    report = (tmp_path / "stacks" / "rank-0.txt").read_text()
    assert report.startswith("rank 0 (")
    assert "after step 1" in report.splitlines()[0]
    assert "on_step_begin" in report  # whose lambda waits
    assert "the run hangs" in capfd.readouterr().err


def test_a_slow_run_that_beats_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(hang_watch.os, "_exit", lambda status: pytest.fail("taken for hung"))
    import time

    slow = [AtStep(step, lambda: time.sleep(0.3)) for step in range(4)]
    trainer = make_trainer("ga", tmp_path, callbacks=slow, max_steps=4, hang_timeout=1.0)
    trainer.train()
    assert trainer.state.global_step == 4


def test_the_rank_that_does_not_wait_is_the_one_that_is_blamed():
    frame = traceback.FrameSummary
    training = frame("/site/negpo/trainers/_base.py", 10, "score")
    collective = frame("/site/torch/distributed/distributed_c10d.py", 99, "all_reduce")
    waiting, busy = hang_watch.where([training, collective]), hang_watch.where([training])
    assert waiting == "waiting in a collective (all_reduce) called from score (/site/negpo/trainers/_base.py:10)"
    found = {0: f"rank 0 (host, process 1) {waiting}", 1: f"rank 1 (host, process 2) {busy}"}
    assert "not waiting: rank 1" in hang_watch.summary(found, 2)
    assert "rank 1 is silent" in hang_watch.summary({0: found[0]}, 2)
    assert "all ranks wait" in hang_watch.summary({0: found[0], 1: found[0]}, 2)
