"""Sharpness-aware steps (SAM) around any forget term: arXiv 2502.05374."""

from contextlib import contextmanager
from typing import Any

import torch

from negpo.errors import ConfigError
from negpo.objectives import perturbed, sam_perturbation
from negpo.trainers._run.metrics import LogBuffer


class SharpnessAware:
    """Adds to a trainer: with ``args.sam_rho`` > 0 the forget gradient is taken at ``theta + rho g / ||g||``.

    Three backward passes per micro-batch: the forget gradient g at theta, the forget gradient at the perturbed weights,
    the retain gradient at theta; the optimiser sees the sum of the last two. Each micro-batch (and rank) perturbs by
    its own gradient. Weights are restored bit for bit.
    """

    args: Any
    accelerator: Any
    model: Any
    _buffer: LogBuffer

    def check_sharpness(self) -> None:
        sharded = getattr(self, "is_deepspeed_enabled", False) or getattr(self, "is_fsdp_enabled", False)
        if self.args.sam_rho and sharded:
            raise ConfigError(
                f"sam_rho={self.args.sam_rho} moves whole parameters, which DeepSpeed and FSDP keep in shards; use one "
                "device or DDP, or set sam_rho=0"
            )

    def training_step(self, model, inputs, num_items_in_batch=None):
        step = super().training_step  # type: ignore[misc]
        if not self.args.sam_rho:
            return step(model, inputs, num_items_in_batch)
        parameters = [p for p in model.parameters() if p.requires_grad]
        accumulated = [p.grad for p in parameters]
        forget = {name: rows for name, rows in inputs.items() if name != "retain"}
        with self.accelerator.no_sync(model):
            _clear(parameters)
            loss = step(model, forget, num_items_in_batch)
            perturbation = sam_perturbation([p.grad for p in parameters], rho=self.args.sam_rho)
            _clear(parameters)
            with perturbed(parameters, perturbation), self._without_logs():
                step(model, forget, num_items_in_batch)
            del perturbation
            if self.args.retain_loss != "none":
                loss = loss + step(model, {"retain": inputs["retain"]}, num_items_in_batch)
        self._join(parameters, accumulated)
        return loss

    def _join(self, parameters, accumulated) -> None:
        """Adds the gradients of earlier micro-batches; averages over ranks when the optimiser comes next."""
        for parameter, before in zip(parameters, accumulated, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else parameter.grad.add_(before)
            if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    @contextmanager
    def _without_logs(self):
        """The pass at the perturbed weights is not what the model says: it leaves no numbers in the logs."""
        kept, self._buffer = self._buffer, LogBuffer()
        try:
            yield
        finally:
            self._buffer = kept


def _clear(parameters) -> None:
    for parameter in parameters:
        parameter.grad = None
