"""A bound on the retain loss with a Lagrange multiplier (PDU, arXiv 2506.05314), for any forget term."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from negpo.data.io import atomic_write_json
from negpo.objectives import dual_update

FILE = "retain_multiplier.json"


class RetainConstraint(TrainerCallback):
    """Owns lambda: adds up the retain loss of an optimiser batch over micro-batches and ranks, moves once per step.

    Updates begin with the first step after ``warmup`` epochs. The released code moves lambda on every micro-batch and
    on each rank for itself, so that accumulation multiplies its speed.
    """

    def __init__(self, trainer: Any, *, start: float, bound: float, step: float, warmup: float):
        self.trainer, self.multiplier = trainer, start
        self.bound, self.step, self.warmup = bound, step, warmup
        self._sum: Any = 0.0
        self._n: Any = 0.0

    def observe(self, loss: torch.Tensor, n: torch.Tensor) -> None:
        """``loss``: mean over the ``n`` units of one micro-batch."""
        self._sum, self._n = self._sum + loss.detach().double() * n, self._n + n

    def on_step_end(self, args, state, control, **kwargs):
        totals = torch.stack([torch.as_tensor(self._sum), torch.as_tensor(self._n)]).float()
        self._sum = self._n = 0.0
        accelerator = self.trainer.accelerator
        if accelerator.num_processes > 1:
            totals = accelerator.reduce(totals.to(accelerator.device), reduction="sum")
        # state.epoch already counts the step that has just ended: the last one of the warm-up does not move lambda
        if totals[1] > 0 and (state.epoch or 0.0) > self.warmup + 1e-9:
            retain = (totals[0] / totals[1]).item()
            self.multiplier = dual_update(self.multiplier, retain, bound=self.bound, step=self.step)

    def save(self, folder: Path) -> None:
        atomic_write_json(folder / FILE, {"multiplier": self.multiplier})

    def load(self, folder: Path) -> None:
        self.multiplier = float(json.loads((folder / FILE).read_text(encoding="utf-8"))["multiplier"])
