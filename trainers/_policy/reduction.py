"""How the token terms of one micro-batch become its share of the optimiser step's loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negpo.trainers._policy.batch import Record

NORMALIZERS = ("token_mean", "sequence_mean", "max_length", "constant", "micro_batch_token_mean")


@dataclass(frozen=True)
class StepTotals:
    """What one optimiser step holds over all processes: counted tokens and rows, and forwards of each process."""

    tokens: float
    rows: float
    forwards: int

    def tensors(self) -> Record:
        """As 0-d tensors of a micro-batch, which is kept in checkpoints."""
        values = {"step_tokens": self.tokens, "step_rows": self.rows, "step_forwards": self.forwards}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    @classmethod
    def of(cls, batch: Record) -> "StepTotals":
        return cls(float(batch["step_tokens"]), float(batch["step_rows"]), int(batch["step_forwards"]))


@dataclass(frozen=True)
class Reduction:
    """``length``: divisor of the sum over tokens; None: rows average over their own tokens, then over rows.

    ``share``: factor of what results. The Trainer averages processes and adds micro-batches up.
    """

    length: float | None
    share: float

    @classmethod
    def of(cls, args: Any, step: StepTotals, mask: Tensor, processes: int) -> "Reduction":
        """For rows with ``mask`` (R, T-1) and the normaliser of a ``PolicyConfig``."""
        if args.normalizer == "micro_batch_token_mean":
            return cls(float(mask.sum()), 1.0 / step.forwards)
        if args.normalizer == "sequence_mean":
            return cls(None, processes * int(mask.any(1).sum()) / step.rows)
        lengths = {
            "token_mean": step.tokens,
            "max_length": step.rows * args.max_completion_length,
            "constant": args.normalizer_length,
        }
        return cls(lengths[args.normalizer], float(processes))

    @property
    def arguments(self) -> dict[str, Any]:
        """Of ``negpo.objectives.reduce_tokens`` and ``clipped_policy_loss``."""
        if self.length is None:
            return {"reduction": "sequence_mean"}
        return {"reduction": "constant", "length": self.length}
