"""U2A, unlearning to align (arXiv 2504.06659): which rows to unlearn, and how strongly, to lower an alignment loss.

A stage before, or between rounds of, any unlearning run::

    stage = U2A(tokenizer, preference_rows)
    rows = stage.select(model, forget_rows)                       # the most helpful rows, weight 1 each
    WeightedNPO = weighted(NPOTrainer)
    WeightedNPO(model, args, rows, ..., row_weights=weights_of(rows)).train()
    rows = stage.reweight(model, rows)                            # mirror descent at the new parameters; train again

Weights are gradient weights: row i's log-probs pass ``weight_i`` times their gradient, which for every objective that
treats rows apart is the gradient of the weighted loss. The scores are first order and read from the release; the
paper's equations and its sign are UNVERIFIED, so ``sign`` chooses (see ``negpo.objectives.u2a_update_weights``).
"""

import copy
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from negpo.data.collate import pad_batch
from negpo.data.preference import Problems, read_preferences
from negpo.data.preference_encode import Limits, encode_groups
from negpo.data.qa import QATemplate
from negpo.errors import ConfigError, DataError
from negpo.logprobs import model_token_logprobs
from negpo.objectives import dpo_loss, ga_loss, u2a_scores, u2a_update_weights
from negpo.trainers._preference.data import PreferenceDataset, Scored, collate
from negpo.trainers._unlearn.base import UnlearnTrainer
from negpo.trainers._unlearn.batch import Part
from negpo.trainers._unlearn.data import check_rows, encode_rows

logger = logging.getLogger(__name__)

Row = dict[str, Any]
WEIGHT = "u2a_weight"


@dataclass
class U2A:
    """Scores, selection and weights.

    Args:
        preference_rows: the alignment data, formats of ``negpo.data.preference``. J is DPO on them, a mean over pairs.
        beta: of that DPO (release: 0.3).
        keep: how many rows stay (release: 1024).
        eta: step of the mirror descent (release: 1e-2).
        sign: "descent" gives helpful rows more weight; "released" less, as the released code does.
        forget_loss: ``(logps, mask) -> (loss, stats)`` of one row, by default gradient ascent's token mean.
        parameters: regular expressions; gradients are compared on matching parameters only. Default: all trained ones.
    """

    tokenizer: Any
    preference_rows: Sequence[Row]
    beta: float = 0.3
    keep: int = 1024
    eta: float = 1e-2
    sign: str = "descent"
    forget_loss: Callable[[Tensor, Tensor], tuple[Tensor, dict]] = ga_loss
    template: QATemplate | None = None
    max_length: int = 512
    batch_size: int = 4
    parameters: Sequence[str] | None = None
    reference: Any = None

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"keep is {self.keep}; at least one row must stay")
        problems = Problems("preference_rows")
        rows = [row for row in read_preferences(self.preference_rows, problems) if row.sign]
        self._groups, _ = encode_groups(rows, self.tokenizer, Limits(max_length=self.max_length), problems)
        if not any({1, -1} <= set(group.signs) for group in self._groups):
            raise DataError("no prompt has a chosen and a rejected answer", file="preference_rows")

    def select(self, model: Any, forget_rows: Sequence[Row]) -> list[Row]:
        """The ``keep`` rows with the largest scores, in their order, each with weight 1 under ``WEIGHT``.

        The model as it is now becomes the reference of J for all later rounds.
        """
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        rows = check_rows(forget_rows, "forget_rows")
        scores = self.scores(model, rows)
        kept = sorted(scores.topk(min(self.keep, len(rows))).indices.tolist())
        logger.info("U2A: kept %d of %d rows, scores %.3g to %.3g", len(kept), len(rows), scores.min(), scores.max())
        return [rows[i] | {WEIGHT: 1.0} for i in kept]

    def reweight(self, model: Any, rows: Sequence[Row]) -> list[Row]:
        """The same rows after one step of mirror descent on their weights; the weights average 1."""
        if self.reference is None:
            raise ConfigError("reweight before select: J has no reference yet. Call select with the starting model")
        weights = torch.tensor([row[WEIGHT] for row in rows], dtype=torch.float64)
        new = u2a_update_weights(weights, self.scores(model, rows), eta=self.eta, sign=self.sign)
        return [row | {WEIGHT: weight} for row, weight in zip(rows, new.tolist(), strict=True)]

    def scores(self, model: Any, rows: Sequence[Row]) -> Tensor:
        """(N,) float64: <gradient of J, gradient of row i's forget loss>; positive where unlearning i lowers J."""
        parameters = self._parameters(model)
        was_training = model.training
        model.eval()  # dropout would make the two gradients those of different functions
        try:
            alignment = self.alignment_gradient(model, parameters)
            found = [
                u2a_scores(alignment, self._row_gradient(model, parameters, item)[None]) for item in self._encode(rows)
            ]
        finally:
            model.train(was_training)
        return torch.cat(found).double().cpu()

    def alignment_gradient(self, model: Any, parameters: list[Tensor]) -> Tensor:
        """(D,) gradient of J, the mean DPO loss over all pairs."""
        groups = [group for group in self._groups if {1, -1} <= set(group.signs)]
        items = [PreferenceDataset(groups, seed=0)[0, index] for index in range(len(groups))]
        total, pairs = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device), 0
        for start in range(0, len(items), self.batch_size):
            batch = collate(items[start : start + self.batch_size], self.tokenizer.pad_token_id or 0)["rows"]
            rows = {name: value.to(total.device) for name, value in batch.items()}
            scored = self._score(model, rows)
            loss, _ = dpo_loss(*scored.side(0), *scored.side(1), scored.ref_side(0), scored.ref_side(1), beta=self.beta)
            total += len(scored.pairs) * _flat_gradient(loss, parameters)
            pairs += len(scored.pairs)
        return total / pairs

    def _score(self, model: Any, rows: dict[str, Tensor]) -> Scored:
        inputs = rows["input_ids"], rows["attention_mask"], rows["labels"]
        out = model_token_logprobs(model, *inputs)
        with torch.no_grad():
            before = model_token_logprobs(self.reference if self.reference is not None else model, *inputs).logps
        signs = rows["group"], rows["sign"], rows["score"]
        return Scored(out.logps, out.mask, before, *signs, len(rows["source"]), rows["attention_mask"].bool())

    def _row_gradient(self, model: Any, parameters: list[Tensor], item: dict[str, list[int]]) -> Tensor:
        device = parameters[0].device
        batch = {name: value.to(device) for name, value in pad_batch([item], 0).items()}
        out = model_token_logprobs(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
        loss, _ = self.forget_loss(out.logps, out.mask)
        return _flat_gradient(loss, parameters)

    def _encode(self, rows: Sequence[Row]) -> list[dict[str, list[int]]]:
        template = self.template or QATemplate.for_model("", self.tokenizer)
        encoded, _ = encode_rows(rows, self.tokenizer, template, max_length=self.max_length, name="forget_rows")
        return encoded

    def _parameters(self, model: Any) -> list[Tensor]:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        chosen = [p for name, p in named if not self.parameters or any(re.search(x, name) for x in self.parameters)]
        if not chosen:
            raise ConfigError(f"parameters={self.parameters} matches no trained parameter")
        return chosen


def _flat_gradient(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    ).float()


class RowWeights(UnlearnTrainer):
    """Mixin before an unlearning trainer: ``row_weights[i]`` multiplies the gradient that forget row i sends back."""

    def __init__(self, *positional: Any, row_weights: Sequence[float], **named: Any):
        self.row_weights = torch.tensor(list(row_weights), dtype=torch.float32)
        super().__init__(*positional, **named)
        n = max(self.train_dataset.row_ids) + 1
        if n > len(self.row_weights):
            raise ConfigError(
                f"row_weights has {len(self.row_weights)} entries, but there are at least {n} forget rows"
            )

    def forget_loss(self, parts: dict[str, Part]):
        return super().forget_loss(
            {name: self._weighted(part) if name in ("forget", "idk") else part for name, part in parts.items()}
        )

    def _weighted(self, part: Part) -> Part:
        weight = self.row_weights.to(part.logps.device)[part.row_id].unsqueeze(1)  # (B, 1)
        fixed = part.logps.detach()
        return replace(part, logps=fixed + weight * (part.logps - fixed))

    def _provenance(self) -> dict[str, Any]:
        return super()._provenance() | {"row weights": self.row_weights.tolist()}


def weighted(trainer: type[UnlearnTrainer]) -> type[UnlearnTrainer]:
    """``trainer`` with a further argument ``row_weights``, one number per forget row."""
    if trainer.forget_loss is UnlearnTrainer.forget_loss:
        raise ConfigError(f"{trainer.__name__} does not work on log-probs; its rows cannot be weighted")
    return type(f"Weighted{trainer.__name__}", (RowWeights, trainer), {})


def weights_of(rows: Sequence[Row]) -> list[float]:
    """The weights that ``U2A.select`` and ``U2A.reweight`` wrote into the rows."""
    return [row[WEIGHT] for row in rows]
