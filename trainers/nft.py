"""NFT, negative-aware fine-tuning: arXiv 2505.18116."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from negpo.errors import ConfigError
from negpo.objectives import nft_loss
from negpo.objectives.nft import RATE_RANGE, WEIGHTINGS
from negpo.trainers._policy.base import PolicyTrainer
from negpo.trainers._policy.batch import MicroBatch
from negpo.trainers._policy.config import PolicyConfig
from negpo.trainers._run.settings import Refused, Rule


@dataclass
class NFTConfig(PolicyConfig):
    """The released settings: sixteen steps per rollout, dead groups left out, token sum over the constant 1000."""

    inherited: ClassVar[dict[str, Rule]] = dict.fromkeys(
        ("epsilon", "epsilon_high", "delta"), Refused("NFT clips no ratio")
    )

    updates_per_rollout: int = field(default=16, metadata={"help": "Optimiser steps per rollout batch."})
    dead_groups: str = field(
        default="drop", metadata={"help": "NFT needs mixed groups: drop the others, or resample; keep clamps the rate."}
    )
    normalizer: str = field(default="constant", metadata={"help": "constant (token sum / 1000) or token_mean."})
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "Must stay False: the loss has no place for importance weights."}
    )
    nft_eps: float = field(default=1.0, metadata={"help": "Floor of the implicit negative ratio."})
    negative_weight: float = field(default=1.0, metadata={"help": "Weight of wrong answers; 0 is RFT."})
    weighting: str = field(
        default="one_minus_rate", metadata={"help": "Prompt weight: one_minus_rate, sqrt_odds or none."}
    )

    def validate(self) -> None:
        super().validate()
        if self.weighting not in WEIGHTINGS:
            raise ConfigError(f"weighting is {self.weighting!r}; choose one of {', '.join(WEIGHTINGS)}")
        if self.negative_weight < 0 or not self.nft_eps > 0:
            raise ConfigError(
                f"negative_weight={self.negative_weight} must not be negative, nft_eps={self.nft_eps} must be positive"
            )
        if self.normalizer == "sequence_mean":
            raise ConfigError("normalizer=sequence_mean is not defined for NFT; use constant or token_mean")


class NFTTrainer(PolicyTrainer):
    """Fits right answers with the policy and wrong ones with the implicit negative policy.

    The advantages ``label - rate`` are those of the on-policy gradient (weighting one_minus_rate). They decide which
    rows are run and how logs are split; the loss itself reads labels and rates.
    """

    config_class = NFTConfig
    loss_takes_importance = False

    def compute_advantages(self, rewards: Tensor) -> Tensor:
        advantages = (self.labels(rewards) > 0).float() - self._rates(rewards)
        return torch.where(advantages < 0, self.args.negative_weight * advantages, advantages)

    def group_values(self, rewards: Tensor) -> dict[str, Tensor]:
        return {"pass_rate": self._rates(rewards)}

    def loss(self, batch: MicroBatch, logps: Tensor, old_logps: Tensor, mask: Tensor):
        return nft_loss(
            logps,
            old_logps,
            mask,
            batch["correct"],
            batch["pass_rate"],
            eps=self.args.nft_eps,
            negative_weight=self.args.negative_weight,
            weighting=self.args.weighting,
            length=batch["reduction"].length,
        )

    def _rates(self, rewards: Tensor) -> Tensor:
        """(P, G): share of right answers among the known ones of each group, in the range that the loss clamps to."""
        known = ~rewards.isnan()
        right = (self.labels(rewards) > 0).sum(1) / known.sum(1).clamp(min=1)
        return right.clamp(*RATE_RANGE).unsqueeze(1).expand_as(rewards)
