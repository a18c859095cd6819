"""What is measured in every optimiser step, and whether the run may take it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negpo.trainers._policy.watchdog import Watchdog


@dataclass(frozen=True)
class StepReport:
    """One optimiser step over all processes. ``looping``: share of the rollout's long completions that loop."""

    finite: bool
    looping: float | None
    reason: str | None  # to stop; None: all is well


class StepGuard:
    """Collects sums over the micro-batches of an optimiser step and judges them before the optimiser acts."""

    def __init__(self, watchdog: Watchdog, accelerator: Any):
        self.watchdog, self.accelerator = watchdog, accelerator
        self.looping = (0, 0)  # (looping, judged) completions of the current rollout on this process
        self._sums = torch.zeros(5, dtype=torch.float64, device=accelerator.device)

    @classmethod
    def of(cls, args: Any, vocabulary: int, accelerator: Any) -> "StepGuard":
        """With the limits of a ``PolicyConfig``."""
        limits = {
            name: getattr(args, name) for name in ("min_entropy", "max_entropy_share", "max_repetition", "max_kl")
        }
        return cls(Watchdog(vocabulary=vocabulary, patience=args.watchdog_patience, **limits), accelerator)

    def observe(self, logps: Tensor, old_logps: Tensor, mask: Tensor, entropy: Tensor | None, loss: Tensor) -> None:
        """One micro-batch: tokens, KL, entropy, tokens with entropy, non-finite values."""
        gap = (logps.detach() - old_logps).clamp(-20.0, 20.0)
        kl = torch.where(mask, gap.exp() - 1.0 - gap, 0.0).sum()
        tokens = mask.sum()
        total = 0.0 if entropy is None else torch.where(mask, entropy.detach(), 0.0).sum()
        bad = ~torch.isfinite(loss.detach()) | ~torch.isfinite(logps.detach()).all()
        values = (tokens, kl, total, tokens * (entropy is not None), bad)
        self._sums += torch.stack([torch.as_tensor(v, dtype=torch.float64).to(self._sums) for v in values])

    def judge(self) -> StepReport:
        """After the last micro-batch of a step, on all processes together; the sums begin anew."""
        sums = torch.cat([self._sums, self._sums.new_tensor(self.looping)])
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        tokens, kl, entropy, measured, bad, looping, judged = sums.tolist()
        self._sums.zero_()
        share = looping / judged if judged else None
        if bad:
            return StepReport(False, share, None)
        reason = self.watchdog.check(entropy / measured if measured else None, kl / tokens if tokens else None, share)
        return StepReport(True, share, reason)

    def state(self) -> dict[str, Any]:
        return {"looping": list(self.looping), "watchdog": self.watchdog.state()}

    def load(self, state: dict[str, Any]) -> None:
        self.looping = tuple(state["looping"])
        self.watchdog.load(state["watchdog"])
