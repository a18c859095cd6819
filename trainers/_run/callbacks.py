"""Guards: stop on non-finite gradients, on lost utility, and on a model that has been unlearned into noise."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class EpochBegins(TrainerCallback):
    """Tells ``trainer.train_sampler`` which epoch it shuffles for.

    The Trainer tells the data loader, but when a run on several processes is resumed inside an epoch, accelerate wraps
    the sampler so deeply that it is not passed on, and the order would be that of the first epoch.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.train_sampler.epoch = math.floor((state.epoch or 0.0) + 1e-6)


class FiniteGradients(TrainerCallback):
    """Stops before the optimiser can write a NaN into the weights. Installed by every trainer itself."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not gradients or args.fp16:  # sharded elsewhere (DeepSpeed); fp16: overflow is the loss scaler's business
            return
        shards = [g.to_local() if hasattr(g, "to_local") else g for g in gradients]
        norm = torch.linalg.vector_norm(torch.stack([g.norm().to(shards[0].device).float() for g in shards]))
        if self.trainer.is_fsdp_enabled:  # one rank's shards may be finite while another's are not: stop together
            norm = self.trainer.accelerator.reduce(norm, reduction="sum")
        if not math.isfinite(norm.item()):
            self.trainer.stop_not_finite("the gradient is not finite", self.trainer.window_rows)


class UtilityFloorCallback(TrainerCallback):
    """Stop when ``evaluate(model)`` falls below ``floor``; the last checkpoint above the floor is kept.

    ``evaluate`` maps the model to a number where more is better (e.g. mean retain probability). It runs every ``every``
    optimiser steps in eval mode without gradients. The value is logged as ``guard/utility``; each passing evaluation
    saves a checkpoint unless ``save_strategy="no"``.
    """

    def __init__(self, evaluate: Callable[[Any], float], floor: float, *, every: int = 10):
        self.evaluate, self.floor, self.every = evaluate, floor, every
        self.last_good_step: int | None = None
        self.reason: str | None = None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every:
            return control
        was_training = model.training
        model.eval()
        with torch.no_grad():
            utility = float(self.evaluate(model))
        model.train(was_training)
        state.log_history.append({"guard/utility": utility, "step": state.global_step, "epoch": state.epoch})
        if utility >= self.floor:
            self.last_good_step = state.global_step
            control.should_save = args.save_strategy != "no"
            return control
        kept = "no evaluated step" if self.last_good_step is None else f"step {self.last_good_step}"
        self.reason = f"utility {utility:.4g} < {self.floor:g} at step {state.global_step}; {kept} was above the floor"
        return stop_early(control, self.reason)


class OverUnlearningCallback(TrainerCallback):
    """Stop when the forget tokens have become less likely than a uniform guess over the vocabulary.

    A model that never saw a text still prefers plausible tokens. A mean log-prob below ``floor`` (default
    ``-log(vocabulary)``) is not forgetting but damage: such models produce gibberish. It must hold for ``patience``
    consecutive logs. A stricter floor is the retain model's mean log-prob on the forget rows, where it is known.
    """

    def __init__(self, floor: float | None = None, *, patience: int = 2):
        self.floor, self.patience = floor, patience
        self.reason: str | None = None
        self._below = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._below = 0
        if self.floor is None:
            self.floor = -math.log(model.config.get_text_config().vocab_size)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "forget/logp" not in (logs or {}):
            return control
        self._below = self._below + 1 if logs["forget/logp"] < self.floor else 0
        if self._below < self.patience:
            return control
        self.reason = (
            f"mean log-prob of the forget tokens is {logs['forget/logp']:.2f}, below {self.floor:.2f}, for "
            f"{self.patience} logs in a row at step {state.global_step}"
        )
        return stop_early(control, self.reason)


def stop_early(control, reason: str):
    logger.warning("stopping early: %s", reason)
    control.should_training_stop = True
    return control
