"""The life of a run, the same for every trainer: train, resume, stop, save, seal."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from negpo.data.qa import QATemplate
from negpo.errors import NegpoError, TrainingInterrupted, TrainingStopped
from negpo.trainers._run import checkpoint
from negpo.trainers._run.callbacks import EpochBegins, FiniteGradients
from negpo.trainers._run.folder_lock import FolderLock
from negpo.trainers._run.hang_watch import HangWatch
from negpo.trainers._run.identity import check_settings_of, settings_of
from negpo.trainers._run.model import check_routers, rows_of_tied_embedding
from negpo.trainers._run.model_card import WritesModelCard
from negpo.trainers._run.precision import UpdateLog, optimizer_for
from negpo.trainers._run.sharding import settle_layouts
from negpo.trainers._run.signals import StopOnSigterm
from negpo.trainers._run.sound import broken_weights


class Lifecycle(WritesModelCard):
    """Mixin before a ``transformers.Trainer``. A subclass says what its run depends on, what it logs, what it keeps.

    A run ends in one of four ways: done; ``TrainingStopped`` from ``stop``, with the weights of the last finished step
    in a checkpoint; ``TrainingInterrupted`` after SIGTERM, with a checkpoint; or killed, by whatever hand, with the
    last sealed checkpoint untouched. From each of them ``train(resume_from_checkpoint=True)`` goes on exactly.
    """

    args: Any  # the method's config
    model: Any
    processing_class: Any
    train_dataset: Any
    template: QATemplate | None = None  # around question/answer rows; saved beside the model

    def __init__(self, *positional: Any, **named: Any):
        super().__init__(*positional, **named)
        check_routers(self.model)
        self.signals, self.watch, self.lock = StopOnSigterm(self), HangWatch(self), FolderLock(self)
        self.rotation = checkpoint.Rotation(self)
        for callback in (EpochBegins(self), FiniteGradients(self), self.signals, self.watch, self.lock, self.rotation):
            self.add_callback(callback)
        self._updates = UpdateLog(self.args)
        self.window_rows = ""  # the rows of the optimiser batch, in words
        self._settled = False  # whether all processes know how rows can be packed

    # ---- what a subclass defines ----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Called before training with the weights of the starting model in place, on resume too."""

    def _provenance(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run that saved the checkpoint: name -> hash or value."""
        raise NotImplementedError

    @property
    def keeps_state_per_process(self) -> bool:
        """Whether a process cannot go on from what another one saved; then a run resumes on as many as it had."""
        return self.sharded

    def _save_extras(self, folder: Path) -> None:
        """Write what a checkpoint needs beside weights and optimiser; on every process, before it is sealed."""

    def _load_extras(self, folder: Path) -> None:
        """Read it back when a run is resumed; on every process."""

    def _drain(self) -> dict[str, float]:
        """Numbers collected since the last log, for the log."""
        return {}

    def remarks(self) -> dict[str, Any]:
        """What belongs into the record of a finished run beside its settings, e.g. what the data lost."""
        return {}

    def close(self) -> None:
        """Let go of what outlives training: engines, other processes."""

    # ---- running --------------------------------------------------------------------------------------------------

    @property
    def sharded(self) -> bool:
        """Whether a forward needs the other processes (ZeRO, FSDP)."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As in transformers; ``resume_from_checkpoint=True`` is the newest complete checkpoint of ``output_dir``."""
        with self.lock.held():
            resume = checkpoint.resolve(resume_from_checkpoint, self.args.output_dir)
            if resume is not None:
                checkpoint.check_complete_state(resume)
                check_settings_of(resume, checkpoint.provenance(Path(resume)).get("settings") or {}, self.args)
            self._begin()
            if resume is not None:
                checkpoint.check_provenance(resume, self._identity())
                self._load_extras(Path(resume))
            with self.signals.listening(), self.watch.watching(), self._keeping_finished_steps():
                output = super().train(resume, *args, **kwargs)
            self._require_sound_weights(f"after the last step, {self.state.global_step},")
            self.rotation.settle()
            return output

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        return optimizer_for(args, *Trainer.get_optimizer_cls_and_kwargs(args, model))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.state.global_step >= self.state.max_steps:
            # Resumed after its last step: the Trainer would take one more before it looks at the count.
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.accelerator.num_processes > 1 and not self._settled:
            settle_layouts(model)
            self._settled = True
        with rows_of_tied_embedding(model) if model is self.model else contextlib.nullcontext():
            return super().training_step(model, inputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._drain() | self._updates.drain(self.optimizer)
        super().log(logs, start_time)

    # ---- stopping and saving --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _keeping_finished_steps(self) -> Iterator[None]:
        """An error in words (a reward function, a row, a full disk) ends the run with its finished steps saved.

        In one process: others would wait for each other while one of them fails.
        """
        try:
            yield
        except TrainingInterrupted:
            raise
        except NegpoError as error:
            told = isinstance(error, TrainingStopped) and error.told
            if told or not self.state.global_step or self.accelerator.num_processes > 1:
                raise
            kept = self._save_last_step()
            raise TrainingStopped(f"{str(error).rstrip('.')}. {kept[0].upper()}{kept[1:]}", told=True) from error

    def _save_last_step(self) -> str:
        """Save the weights of the last finished step unless that was done; what is left, in words."""
        with contextlib.suppress(TrainingStopped):  # a full disk, broken weights; the reason to stop is the other one
            if self._is_torn(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"):
                self._save_checkpoint(self.model, trial=None)
        last = checkpoint.last_complete(self.args.output_dir)
        return f"the last good checkpoint is {last}" if last else "no checkpoint could be saved"

    def _require_sound_weights(self, when: str) -> None:
        """TrainingStopped when weights are NaN or infinite: nothing of them is sealed or saved."""
        if (broken := broken_weights(self.model, self.accelerator)) is None:
            return
        last = checkpoint.last_complete(self.args.output_dir)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint from before"
        raise TrainingStopped(
            f"{when} weights are not finite ({broken}); they were not saved, {kept}. Lower learning_rate or clip "
            "gradients (max_grad_norm)",
            told=True,
        )

    def stop(self, what: str, rows: str = "", advice: str = "") -> None:
        """Save the weights of the last finished step (finite: the guards run before the optimiser), then raise.

        All processes call it together.
        """
        step = self.state.global_step
        kept = self._save_last_step() if step else "nothing was trained yet"
        where = f"step {step + 1}, {rows}" if rows else f"step {step + 1}"
        advice = f". {advice}" if advice else ""
        raise TrainingStopped(f"{what} at {where}. The step was not taken; {kept}{advice}", told=True)

    def stop_not_finite(self, what: str, rows: str = "") -> None:
        self.stop(what, rows, f"Lower learning_rate{', look at these rows,' if rows else ''} or train in float32")

    def _is_torn(self, folder: Path) -> bool:
        """Whether ``folder`` is missing or damaged, as the process that seals checkpoints sees it; its remains go."""
        torn = torch.zeros((), device=self.accelerator.device)
        if self.args.should_save and checkpoint.damage(folder) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            torn += 1
        if self.accelerator.num_processes > 1:
            torn = self.accelerator.reduce(torn, reduction="sum")
        return bool(torn)

    def _identity(self) -> dict[str, Any]:
        own = {"method": type(self).__name__} | self._provenance()
        return own | checkpoint.layout(self.args, exact=self.keeps_state_per_process)

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        self._require_sound_weights(f"after step {self.state.global_step}")
        with checkpoint.writing(self, folder, self._identity() | {"settings": settings_of(self.args)}):
            super()._save_checkpoint(model, trial)
            folder.mkdir(parents=True, exist_ok=True)  # processes on other machines may have written nothing yet
            self._save_extras(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write into a hidden folder first, so that ``output_dir`` never holds half a model."""
        target = Path(output_dir if output_dir is not None else self.args.output_dir)
        work = target / f".saving-{os.getpid()}"
        try:
            super()._save(str(work), state_dict)
            if self.template is not None:
                self.template.save(work, self.processing_class)
            for path in sorted(work.iterdir()):
                os.replace(path, target / path.name)
        except Exception as error:  # OSError, or safetensors' own for the same full disk
            raise TrainingStopped(checkpoint.not_saved(target, error, self.args.output_dir), told=True) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
