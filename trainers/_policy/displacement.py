"""Whether right answers become less likely while wrong ones are pushed down."""

from typing import Any

import torch
from torch import Tensor

from negpo.trainers._policy import batch as rows_
from negpo.trainers._policy.batch import Record
from negpo.trainers._policy.score import RowScorer
from negpo.trainers._policy.telemetry import Telemetry


class DisplacementProbe:
    """Some right answers of the current rollout and their log-probs before its updates.

    Lazy likelihood displacement (arXiv 2505.18830) shows as a negative ``displacement/correct``.
    """

    def __init__(self, scorer: RowScorer, telemetry: Telemetry):
        self._scorer, self._telemetry = scorer, telemetry
        self.record: Record | None = None  # tokens and old_logps; part of a checkpoint

    def keep(self, record: Record, rows: Tensor) -> None:
        """Remember ``rows`` of ``record``, whose ``old_logps`` are known."""
        kept = rows_.tokens_of(record) | {"old_logps": record["old_logps"]}
        self.record = rows_.take(kept, rows) if len(rows) else None

    def measure(self, model: Any) -> None:
        """Log the change of their log-prob per token over the last rollout's updates, and forget them."""
        probe, self.record = self.record, None
        device = self._scorer.accelerator.device
        count = 0 if probe is None else len(probe["lengths"])
        if probe is None:
            if not self._scorer.sharded:
                return
            probe = rows_.dummy_row(device)
        now = self._scorer.rows(model, probe, torch.arange(count, device=device))
        if count:
            mask = rows_.answer_mask(probe)
            self._telemetry.add_masked("displacement/correct", now - probe["old_logps"], mask)
            self._telemetry.add("displacement/tokens", mask.sum())
