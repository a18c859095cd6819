"""Likelihood displacement: both signs' log-probs in the log, and a stop when the preferred answers sink."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import TrainerCallback

from negpo.trainers._run.callbacks import stop_early
from negpo.trainers._run.metrics import LogBuffer

if TYPE_CHECKING:
    from negpo.trainers._preference.data import Scored

NAMES = (("chosen", 1), ("rejected", -1), ("samples", 0))


class DisplacementCallback(TrainerCallback):
    """Stop when the chosen answers' mean token log-prob stays below ``floor`` for ``patience`` logs in a row.

    Preference losses look at differences only: both likelihoods may fall together while the loss and every margin
    improve. ``reason`` says why a run was stopped; the last checkpoint is kept.
    """

    def __init__(self, floor: float, *, patience: int = 2):
        self.floor, self.patience = floor, patience
        self.reason: str | None = None
        self._below = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self._below = 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "chosen/logp" not in (logs or {}):
            return control
        self._below = self._below + 1 if logs["chosen/logp"] < self.floor else 0
        if self._below < self.patience:
            return control
        self.reason = (
            f"mean log-prob of the chosen answers is {logs['chosen/logp']:.3f}, below {self.floor:.3f}, for "
            f"{self.patience} logs in a row at step {state.global_step}. Lower learning_rate or raise nll_coeff"
        )
        return stop_early(control, self.reason)


def log_signs(buffer: LogBuffer, scored: "Scored", loss: Tensor) -> None:
    """Log-probs, lengths, log-ratios and gradient weights apart by sign, and margins over pairs."""
    gradient = None
    if scored.logps.requires_grad and loss.requires_grad:
        # only the (R, T) graph of the objective is walked, not the model
        gradient = torch.autograd.grad(loss, scored.logps, retain_graph=True, allow_unused=True)[0]
    logps, mask = scored.logps.detach(), scored.mask
    for name, sign in NAMES:
        rows = scored.sign == sign
        if not rows.any():
            continue
        n = rows.sum()
        buffer.add_tokens(name, logps[rows], mask[rows])
        buffer.add(f"{name}/sequence_logp", torch.where(mask[rows], logps[rows], 0.0).sum(), n)
        buffer.add(f"{name}/length", mask[rows].sum(), n)
        if scored.ref_logps is not None:
            buffer.add_log_ratio(name, logps[rows], scored.ref_logps[rows], mask[rows])
        if gradient is not None:
            buffer.add(f"{name}/grad_weight", torch.where(mask[rows], gradient[rows], 0.0).sum(), 1.0)
    if len(scored.pairs):
        _log_margins(buffer, scored, logps)


def _log_margins(buffer: LogBuffer, scored: "Scored", logps: Tensor) -> None:
    chosen, rejected = scored.pairs.T
    total = torch.where(scored.mask, logps, 0.0).sum(1)
    mean = total / scored.mask.sum(1).clamp(min=1)
    n = float(len(chosen))
    buffer.add("margin/logp", (mean[chosen] - mean[rejected]).sum(), n)
    buffer.add("ranking/accuracy", (total[chosen] >= total[rejected]).sum(), n)
    buffer.add("ranking/accuracy_per_token", (mean[chosen] >= mean[rejected]).sum(), n)
    if scored.ref_logps is not None:
        ratio = total - torch.where(scored.mask, scored.ref_logps, 0.0).sum(1)
        margin = ratio[chosen] - ratio[rejected]
        buffer.add("margin/log_ratio", margin.sum(), n)
        buffer.add("margin/accuracy", (margin >= 0).sum(), n)
