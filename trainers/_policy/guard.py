"""The part of a run that is not about its method: guards, logs, checkpoints that resume exactly."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from negpo.data.rows import fingerprint_rows
from negpo.trainers._policy.collect import CollectsRollouts
from negpo.trainers._policy.state import load_state, save_state
from negpo.trainers._policy.watchdog import Watchdog
from negpo.trainers._run.lifecycle import Lifecycle


class GuardedRun(Lifecycle, CollectsRollouts):
    """Watches every optimiser step and writes what a resumed run needs."""

    def install_guards(self) -> None:
        args = self.args
        self.watchdog = Watchdog(
            vocabulary=self.model.config.get_text_config().vocab_size,
            min_entropy=args.min_entropy,
            max_entropy_share=args.max_entropy_share,
            max_repetition=args.max_repetition,
            max_kl=args.max_kl,
            patience=args.watchdog_patience,
        )
        self._observed = torch.zeros(5, dtype=torch.float64, device=self.accelerator.device)

    # ---- watching one optimiser step ------------------------------------------------------------------------------

    def observe(self, logps: Tensor, old_logps: Tensor, mask: Tensor, entropy: Tensor | None, loss: Tensor) -> None:
        """Sums for the watchdog: tokens, KL, entropy, tokens with entropy, non-finite values."""
        gap = (logps.detach() - old_logps).clamp(-20.0, 20.0)
        kl = torch.where(mask, gap.exp() - 1.0 - gap, 0.0).sum()
        tokens = mask.sum()
        total = 0.0 if entropy is None else torch.where(mask, entropy.detach(), 0.0).sum()
        bad = ~torch.isfinite(loss.detach()) | ~torch.isfinite(logps.detach()).all()
        values = (tokens, kl, total, tokens * (entropy is not None), bad)
        self._observed += torch.stack([torch.as_tensor(v, dtype=torch.float64).to(self._observed) for v in values])

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.micro_step % self.args.gradient_accumulation_steps == 0:
            self._check_step()
        return loss

    def _check_step(self) -> None:
        sums = torch.cat([self._observed, self._observed.new_tensor(self.looping)])
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        tokens, kl, entropy, measured, bad, looping, judged = sums.tolist()
        self._observed.zero_()
        if bad:
            self.stop_not_finite("the loss or a log-prob is not finite,")
        means = (
            entropy / measured if measured else None,
            kl / tokens if tokens else None,
            looping / judged if judged else None,
        )
        if judged:
            self.record_metric("completions/looping", looping / judged)
        if (reason := self.watchdog.check(*means)) is not None:
            self.stop(f"{reason},")

    def _drain(self) -> dict[str, float]:
        return self.telemetry.drain(self.accelerator)

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    @property
    def keeps_state_per_process(self) -> bool:
        return True  # its own part of the rollout

    def _begin(self) -> None:
        self.micro_step, self.buffered = 0, None

    def _save_extras(self, folder: Path) -> None:
        step = self.state.global_step * self.args.gradient_accumulation_steps
        inside = step % (self.args.steps_per_generation * self.args.num_iterations) != 0
        batches = [*(self.buffered if inside and self.buffered else []), *([self.probe] if self.probe else [])]
        state = {
            "micro_step": step,
            "buffered": len(batches) - bool(self.probe),
            "rollouts": self.source.rollouts,
            "prompts": self.prompts.position,
            "looping": list(self.looping),
            "watchdog": self.watchdog.state(),
        }
        save_state(folder, self.accelerator.process_index, batches, state)

    def _load_extras(self, folder: Path) -> None:
        batches, state = load_state(folder, self.accelerator.process_index, self.accelerator.device)
        self.micro_step = state["micro_step"]
        self.buffered = batches[: state["buffered"]] or None
        self.probe = next(iter(batches[state["buffered"] :]), None)
        self.source.rollouts = state["rollouts"]
        self.prompts.position = state["prompts"]
        self.looping = tuple(state["looping"])
        self.watchdog.load(state["watchdog"])

    def _provenance(self) -> dict[str, Any]:
        args = self.args
        return {
            "training rows": self._rows_digest,
            "seed": args.seed,
            "batch layout": [
                args.generation_batch_size,
                args.num_generations,
                args.gradient_accumulation_steps,
                args.num_iterations,
            ],
        }

    @property
    def _rows_digest(self) -> str:
        if not hasattr(self, "_digest"):
            self._digest = fingerprint_rows(list(self.train_dataset))
        return self._digest
