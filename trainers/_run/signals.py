"""SIGTERM, as schedulers send it before they take a machine away: finish the step, write a checkpoint, say so, exit."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from negpo.errors import TrainingInterrupted
from negpo.trainers._run import checkpoint

logger = logging.getLogger(__name__)


class StopOnSigterm(TrainerCallback):
    """Turns SIGTERM on any rank into a checkpoint after the current optimiser step, on all ranks after the same one.

    ``save_strategy`` may be "no": this checkpoint is written anyway. Before and after training the signal does what it
    did before.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.received = False
        self.stopped_at: int | None = None

    def on_step_end(self, args, state, control, **kwargs):
        accelerator, received = self.trainer.accelerator, self.received
        if accelerator.num_processes > 1:
            flag = torch.tensor(float(received), device=accelerator.device)
            received = bool(accelerator.reduce(flag, reduction="sum") > 0)
        if received:
            self.stopped_at = state.global_step
            control.should_save = True
            control.should_training_stop = True
        return control

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around training. Raises TrainingInterrupted at its end if the signal had come.

        A thread other than the main one cannot handle signals; there SIGTERM ends the process as usual.
        """
        self.received, self.stopped_at = False, None
        in_main = threading.current_thread() is threading.main_thread()
        before: Any = signal.signal(signal.SIGTERM, self._note) if in_main else None
        try:
            yield
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
        if self.stopped_at is not None:
            last = checkpoint.last_complete(self.trainer.args.output_dir)
            raise TrainingInterrupted(
                f"SIGTERM: stopped after step {self.stopped_at}, saved as {last}. Go on with "
                "--resume_from_checkpoint true"
            )

    def _note(self, number: int, frame: Any) -> None:
        logger.warning("SIGTERM: a checkpoint follows after this step")
        self.received = True
