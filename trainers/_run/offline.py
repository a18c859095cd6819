"""What trainers on stored rows share: runs that stop cleanly, logs without waiting, checkpoints that are whole."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from negpo.errors import TrainingStopped
from negpo.trainers._run import checkpoint
from negpo.trainers._run.callbacks import EpochBegins, FiniteGradients
from negpo.trainers._run.hang_watch import HangWatch
from negpo.trainers._run.metrics import LogBuffer
from negpo.trainers._run.model import rows_of_tied_embedding
from negpo.trainers._run.model_card import WritesModelCard
from negpo.trainers._run.rows import EpochSampler
from negpo.trainers._run.sharding import settle_layouts
from negpo.trainers._run.signals import StopOnSigterm


class OfflineTrainer(WritesModelCard):
    """``transformers.Trainer`` with guards. A subclass defines ``batch_loss`` and says what its run depends on.

    The training set is indexed by ``(epoch, index)`` and has a ``seed``. Logged numbers are collected in
    ``self._buffer`` and drained with every log of the loss.
    """

    args: Any  # the method's config
    model: Any
    processing_class: Any
    train_dataset: Any

    # The loss is a mean: Trainer divides it by the accumulation steps. The attribute is read from transformers 5.19 on;
    # before, the None that get_batch_samples returns says the same.
    loss_is_scaled_for_ga = False

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.args._n_gpu = min(self.args._n_gpu, 1)  # torch DataParallel cannot run us; several GPUs: accelerate launch
        self.add_callback(EpochBegins(self))
        self.add_callback(FiniteGradients(self))
        self._signals, self._watch = StopOnSigterm(self), HangWatch(self)
        self.add_callback(self._signals)
        self.add_callback(self._watch)
        self._buffer = LogBuffer()
        self._settled = False  # whether all processes know how rows can be packed
        self.window_rows = ""  # the rows of the optimiser batch, in words

    # ---- what a subclass defines ----------------------------------------------------------------------------------

    def batch_loss(self, model, inputs) -> torch.Tensor:
        """The loss of one micro-batch, scaled to its share of the optimiser batch."""
        raise NotImplementedError

    def _prepare_reference(self) -> None:
        """Called before training with the weights of the starting model in place, on resume too."""

    def _provenance(self) -> dict[str, Any]:
        """What a resumed run must have in common with the run that saved the checkpoint: name -> hash."""
        raise NotImplementedError

    def _culprits(self, model, inputs) -> str:
        """The rows of a micro-batch that give a loss which is not finite, in words."""
        return self.window_rows

    # ---- running --------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset=None):
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        shuffle = self.args.train_sampling_strategy == "random"
        self.train_sampler = EpochSampler(len(dataset), dataset.seed, shuffle=shuffle)
        return self.train_sampler

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):  # type: ignore[override]
        """As in transformers; ``resume_from_checkpoint=True`` is the newest complete checkpoint of ``output_dir``."""
        resume = checkpoint.resolve(resume_from_checkpoint, self.args.output_dir)
        self._prepare_reference()  # here the weights are still those of the starting model, on resume too
        if resume is not None:
            checkpoint.check_provenance(resume, self._identity())
            self._load_extras(Path(resume))
        with self._signals.listening(), self._watch.watching():
            return super().train(resume_from_checkpoint=resume, **kwargs)

    def _identity(self) -> dict[str, Any]:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return self._provenance() | checkpoint.layout(self.args, exact=sharded)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.accelerator.num_processes > 1 and not self._settled:
            settle_layouts(model)
            self._settled = True
        with rows_of_tied_embedding(model) if model is self.model else contextlib.nullcontext():
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Loss of one micro-batch, scaled so that the accumulated gradient is that of the whole optimiser batch."""
        if return_outputs:
            raise NotImplementedError("evaluate with negpo eval: the training loss of such a run says little")
        loss = self.batch_loss(model, inputs)
        finite = torch.isfinite(loss.detach())
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite.float(), reduction="mean") == 1
        if not finite:
            self.stop(f"the loss is {loss.item()}", self._culprits(model, inputs))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._buffer.drain(self.accelerator)
        super().log(logs, start_time)

    # ---- stopping and saving --------------------------------------------------------------------------------------

    def stop(self, what: str, rows: str) -> None:
        """Save the weights of the last finished step (finite: the guards run before the optimiser), then raise."""
        step = self.state.global_step
        kept = "nothing was trained yet"
        if step:
            folder = Path(self.args.output_dir) / f"checkpoint-{step}"
            with contextlib.suppress(TrainingStopped):  # the disk may be full too; the reason to stop is the other one
                if not folder.exists():
                    self._save_checkpoint(self.model, trial=None)
            last = checkpoint.last_complete(self.args.output_dir)
            kept = f"the last good checkpoint is {last}" if last else "no checkpoint could be saved"
        raise TrainingStopped(
            f"{what} at step {step + 1}, {rows}. The step was not taken; {kept}. Lower learning_rate, "
            "look at these rows, or train in float32"
        )

    def _save_extras(self, folder: Path) -> None:
        """Files of a subclass that belong into a checkpoint; written before it is sealed."""

    def _load_extras(self, folder: Path) -> None:
        """Read them back when a run is resumed."""

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with checkpoint.writing(self, folder, self._identity()):
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self._save_extras(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write into a hidden folder first, so that ``output_dir`` never holds half a model."""
        target = Path(output_dir if output_dir is not None else self.args.output_dir)
        work = target / f".saving-{os.getpid()}"
        try:
            super()._save(str(work), state_dict)
            for path in sorted(work.iterdir()):
                os.replace(path, target / path.name)
        except Exception as error:  # OSError, or safetensors' own for the same full disk
            raise TrainingStopped(checkpoint.not_saved(target, error, self.args.output_dir)) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
