"""ResRL: spare the tokens of wrong answers that look like those of right ones, arXiv 2605.00380."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from negpo.errors import ConfigError
from negpo.objectives import group_advantages, resrl_token_weights
from negpo.rollout.decoding import decoding_mode
from negpo.rollout.weights import unwrap
from negpo.trainers._policy import batch as rows_
from negpo.trainers._policy.base import PolicyTrainer
from negpo.trainers._policy.batch import Record
from negpo.trainers._policy.config import PolicyConfig


@dataclass
class ResRLConfig(PolicyConfig):
    """The released settings: dual clip 3, rank 64, quantiles 0.2 and 0.8, weights from 0.1; right answers at 0.1."""

    delta: float | None = field(default=3.0, metadata={"help": "Dual clip: largest ratio of wrong answers."})
    rank: int = field(default=64, metadata={"help": "Dimensions of the subspace of right answers' states."})
    low_quantile: float = field(default=0.2, metadata={"help": "Residuals up to this quantile get min_weight."})
    high_quantile: float = field(default=0.8, metadata={"help": "Residuals from this quantile on get weight 1."})
    min_weight: float = field(default=0.1, metadata={"help": "Smallest weight of a token of a wrong answer."})
    positive_weight: float = field(default=0.1, metadata={"help": "Weight of right answers."})

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.low_quantile < self.high_quantile <= 1:
            raise ConfigError(
                f"low_quantile={self.low_quantile} and high_quantile={self.high_quantile}: need 0 <= low < high <= 1"
            )
        if self.rank < 1 or not 0 <= self.min_weight <= 1 or self.positive_weight < 0:
            raise ConfigError(
                f"rank={self.rank}, min_weight={self.min_weight}, positive_weight={self.positive_weight}: need rank >= "
                "1, min_weight in [0, 1], positive_weight >= 0"
            )


class ResRLTrainer(PolicyTrainer):
    """Group-normalised advantages times token weights, computed prompt by prompt on complete groups."""

    config_class = ResRLConfig
    scores_itself = True

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        return group_advantages(rewards)

    def score_old(self, record: Record, rows: Tensor) -> None:
        """Old log-probs; those of mixed groups come from the pass that also yields the hidden states."""
        size, per_batch = self.args.num_generations, self.args.per_device_train_batch_size
        mask = rows_.answer_mask(record)
        weights = torch.ones_like(mask, dtype=torch.float32)
        weights[record["correct"]] = self.args.positive_weight
        record["old_logps"] = torch.zeros_like(weights)
        waiting = torch.zeros_like(record["live"])
        waiting[rows] = True
        for members in torch.arange(len(mask), device=mask.device).split(size):
            members = members[record["selected"][members]]
            if not (self.sharded or self._is_mixed(record, members)):
                continue
            scored = [self._score_with_states(record, part) for part in self._parts(members, per_batch)]
            if not self._is_mixed(record, members):
                continue
            width = max(logps.shape[1] for logps, _ in scored)
            states = torch.cat([torch.nn.functional.pad(h, (0, 0, 0, width - h.shape[1])) for _, h in scored])
            logps = torch.cat([torch.nn.functional.pad(lp, (0, width - lp.shape[1])) for lp, _ in scored])
            record["old_logps"][members, :width] = logps
            waiting[members] = False
            token_weights = self._token_weights(states, mask[members, :width], record["correct"][members])
            wrong = ~record["correct"][members]
            weights[members[wrong], :width] = token_weights[wrong]
        record["old_logps"] += self.scorer.rows(self.model, record, waiting.nonzero().squeeze(1))
        record["advantages"] = record["advantages"].unsqueeze(1) * weights

    def _parts(self, members: Tensor, size: int) -> list[Tensor]:
        """``members`` in micro-batches; under sharding as many as a full group has, so that processes keep in step."""
        parts = list(members.split(size)) if len(members) else []
        full = -(-self.args.num_generations // size)
        return parts + [members.new_empty(0)] * (full - len(parts) if self.sharded else 0)

    @staticmethod
    def _is_mixed(record: Record, members: Tensor) -> bool:
        correct = record["correct"][members]
        return bool(correct.any()) and not bool(correct.all())

    def _score_with_states(self, record: Record, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probs (R, T-1), states (R, T-1, H) that predict them, from the second-to-last layer)."""
        batch = rows_.take(rows_.tokens_of(record), rows) if len(rows) else rows_.dummy_row(self.accelerator.device)
        with decoding_mode(self.model), captured_layer(self.model) as states:
            logps = self.scorer.forward(self.model, batch, packing="padded").logps
        return logps[: len(rows)], states[0][: len(rows), :-1].float()

    def _token_weights(self, states: Tensor, mask: Tensor, correct: Tensor) -> Tensor:
        args = self.args
        return resrl_token_weights(
            states,
            mask,
            correct,
            torch.zeros(len(correct), dtype=torch.long, device=correct.device),
            rank=args.rank,
            quantiles=(args.low_quantile, args.high_quantile),
            min_weight=args.min_weight,
        )


@contextmanager
def captured_layer(model: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collects the output (B, T, H) of the second-to-last decoder layer of every forward inside.

    Raises:
        ConfigError: the model does not show its decoder layers, or has fewer than two.
    """
    decoder = unwrap(model).get_decoder()
    layers: Any = getattr(decoder, "layers", ())
    if len(layers) < 2:
        raise ConfigError(f"{type(unwrap(model)).__name__} shows {len(layers)} decoder layers; ResRL needs two or more")
    states: list[Tensor] = []

    def keep(module, args, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    handle = layers[-2].register_forward_hook(keep)
    try:
        yield states
    finally:
        handle.remove()
