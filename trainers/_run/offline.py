"""What trainers on stored rows share: an order that resumes, losses that are checked, logs without waiting."""

from typing import Any, Protocol

import torch

from negpo.reference import StepZeroCheck
from negpo.trainers._run.lifecycle import Lifecycle
from negpo.trainers._run.metrics import LogBuffer
from negpo.trainers._run.rows import EpochSampler


class WithReference(Protocol):
    """Scored rows: log-probs, those of the reference or None, and the mask, (B, T-1) each."""

    logps: torch.Tensor
    ref_logps: Any
    mask: torch.Tensor


class OfflineTrainer(Lifecycle):
    """A trainer on stored rows. A subclass defines ``batch_loss`` and says what its run depends on.

    The training set is indexed by ``(epoch, index)`` and has a ``seed``. Logged numbers are collected in
    ``self._buffer`` and drained with every log of the loss.
    """

    # The loss is a mean: Trainer divides it by the accumulation steps. The attribute is read from transformers 5.19 on;
    # before, the None that get_batch_samples returns says the same.
    loss_is_scaled_for_ga = False

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self._buffer = LogBuffer()
        self._ref_model: Any = None  # a reference that was handed over, in the place of the starting model
        self._reference_checked = not self.args.check_reference

    # ---- what a subclass defines ----------------------------------------------------------------------------------

    def batch_loss(self, model, inputs) -> torch.Tensor:
        """The loss of one micro-batch, scaled to its share of the optimiser batch."""
        raise NotImplementedError

    def _prepare_reference(self) -> None:
        """Called before training with the weights of the starting model in place, on resume too."""

    def _culprits(self, model, inputs) -> str:
        """The rows of a micro-batch that give a loss which is not finite, in words."""
        return self.window_rows

    @property
    def _has_other_reference(self) -> bool:
        """Whether the reference is another model than the start by request; they then differ, as they should."""
        return self._ref_model is not None

    # ---- running --------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._prepare_reference()

    def _drain(self) -> dict[str, float]:
        return self._buffer.drain(self.accelerator)

    def _get_train_sampler(self, train_dataset=None):
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        shuffle = self.args.train_sampling_strategy == "random"
        self.train_sampler = EpochSampler(len(dataset), dataset.seed, shuffle=shuffle)
        return self.train_sampler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Loss of one micro-batch, scaled so that the accumulated gradient is that of the whole optimiser batch."""
        if return_outputs:
            raise NotImplementedError("evaluate with negpo eval: the training loss of such a run says little")
        loss = self.batch_loss(model, inputs)
        finite = torch.isfinite(loss.detach())
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite.float(), reduction="mean") == 1
        if not finite:
            self.stop_not_finite(f"the loss is {loss.item()}", self._culprits(model, inputs))
        return loss

    def _check_step_zero(self, *scored: WithReference) -> None:
        """Before the first step the policy is its own reference: their log-probs agree, or the run is another one."""
        if self._reference_checked:
            return
        self._reference_checked = True
        if self.state.global_step > 0 or self._has_other_reference:
            return
        precision = self.accelerator.mixed_precision
        names = {"no": str(next(self.model.parameters()).dtype).removeprefix("torch."), "bf16": "bfloat16"}
        for part in scored:
            if part.ref_logps is not None:
                check = StepZeroCheck.measure(part.logps, part.ref_logps, part.mask)
                check.enforce(names.get(precision, "float16"))
