"""Log-probs of a nested batch, the method's statistic, and what one micro-batch weighs in the optimiser batch."""

from typing import Any, ClassVar

import torch

from negpo.logprobs import model_token_logprobs
from negpo.logprobs.statistics import Statistic
from negpo.logprobs.statistics_model import StatisticBatch, model_token_statistic
from negpo.trainers._unlearn.batch import UNITS, Part, concatenate, count, name_rows, single_rows
from negpo.trainers._unlearn.data import PARTS


class Scoring:
    """The part of ``UnlearnTrainer`` that runs the model."""

    args: Any
    accelerator: Any
    processing_class: Any
    reference: Any
    statistic: ClassVar[Statistic | None] = None  # what the objective reads of the vocabulary beside log-probs
    _reference_parts: tuple[str, ...]
    _window: dict[str, torch.Tensor]

    def statistic_positions(self, labels: torch.Tensor) -> torch.Tensor:
        """(B, T) bool: the states at which ``statistic`` is measured; default: those that predict a label."""
        return torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1))

    def score(self, model, inputs) -> dict[str, Part]:
        """Log-probs of all parts through one forward of the concatenated rows, and the method's statistic."""
        names = [name for name in PARTS if name in inputs and not (name == "retain" and self.args.retain_loss == "kl")]
        if not names:
            return {}
        joined: dict[str, Any] = concatenate([inputs[name] for name in names], self.processing_class.pad_token_id)
        values = None
        if self.statistic is not None and "forget" in names:
            values = self._measure(model, joined, len(inputs["forget"]["labels"]))
        logps = model_token_logprobs(model, **joined).logps if values is None else values.logps
        online = None
        if self.reference is not None and self.reference.source != "cache" and self._reference_parts:
            with torch.no_grad(), self.reference.active(model) as reference:
                online = model_token_logprobs(reference, **joined).logps
        parts, start = {}, 0
        for name in names:
            rows = inputs[name]
            height, width = rows["labels"].shape
            place = (slice(start, start + height), slice(0, width - 1))
            ref_logps = rows.get("ref_logps")
            if online is not None and name in self._reference_parts:
                ref_logps = online[place]
            part = Part(logps[place], rows["labels"][:, 1:] != -100, ref_logps, rows["row_id"], rows["labels"])
            if values is not None and name == "forget":
                wide = (place[0], slice(0, width))
                part.value = values.value[wide]
                part.constant = None if values.constant is None else values.constant[wide]
            parts[name] = part
            start += height
        return parts

    def _measure(self, model, joined: dict[str, Any], n_forget: int) -> StatisticBatch:
        """The statistic at the forget rows' positions (the first ``n_forget`` rows) and all log-probs."""
        assert self.statistic is not None
        positions = self.statistic_positions(joined["labels"])
        positions[n_forget:] = False
        reference = {"ref_model": self.reference.model} if self.statistic.uses_reference else {}
        return model_token_statistic(model, **joined, statistic=self.statistic, positions=positions, **reference)

    def share(self, inputs, part: str, unit: str) -> torch.Tensor | float:
        """Factor that turns the mean over this micro-batch into its share of the mean over the optimiser batch.

        Trainer averages micro-batches (and processes) with equal weight. A mean over n items among N in k micro-batches
        must weigh n/N instead of 1/k, hence n k / N. It is 1 where all micro-batches count the same.
        """
        if self.args.token_normalization == "micro_batch" or not self._window:
            return 1.0
        return count(inputs[part], unit) / self._window[part][UNITS.index(unit)]

    def _culprits(self, model, inputs) -> str:
        """The rows whose log-probs are not finite when scored alone: packed with others they would taint those."""
        found = []
        if self.accelerator.num_processes == 1:  # one rank's extra forward would leave the others waiting
            for part, rows in inputs.items():
                bad = [
                    row["row_id"].item()
                    for row in single_rows(rows)
                    if not torch.isfinite(self._logps_alone(model, row)).all()
                ]
                found += [name_rows(part, bad)] if bad else []
        part = "forget" if "forget" in inputs else "retain"
        return ", ".join(found) or name_rows(part, inputs[part]["row_id"].tolist())

    @torch.no_grad()
    def _logps_alone(self, model, row) -> torch.Tensor:
        return model_token_logprobs(model, row["input_ids"], row["attention_mask"], row["labels"]).logps
